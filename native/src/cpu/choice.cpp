// Which instruction set runs.
#include <atomic>
#include <cstring>

#include "kernels.hpp"

namespace mlx_serving::cpu {
namespace {

bool supported(const Kernels* table) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (table == &avx512_vnni::table) return supported(&avx512::table) && __builtin_cpu_supports("avx512vnni");
  if (table == &avx512::table)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("bmi2");
  if (table == &avx2::table)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
#endif
  return table != nullptr;
}

constexpr const Kernels* kTables[] = {
#if defined(__x86_64__)
    &avx512_vnni::table, &avx512::table, &avx2::table,
#elif defined(__aarch64__)
    &neon::table,
#endif
    &scalar::table};

const Kernels* best() {
  for (const Kernels* table : kTables)
    if (supported(table)) return table;
  return &scalar::table;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> instance{best()};
  return instance;
}

}  // namespace

const Kernels& kernels() {
  return *chosen().load(std::memory_order_relaxed);
}

bool use_instructions(const char* name) {
  for (const Kernels* table : kTables) {
    if (std::strcmp(table->name, name) != 0 || !supported(table)) continue;
    chosen().store(table);
    return true;
  }
  return false;
}

}  // namespace mlx_serving::cpu
