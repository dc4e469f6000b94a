// Which instruction set runs.
#include <atomic>
#include <cstring>
#include <vector>

#include "kernels.hpp"

namespace mlx_serving::cpu {
namespace {

#if defined(__x86_64__)
const Kernels* avx512_vnni_table() {
  static const Kernels table = [] {
    Kernels kernels = avx512::table;
    kernels.name = "avx512_vnni";
    kernels.panel_bytes = avx512_vnni::panel_bytes;
    kernels.split_planes = avx512_vnni::split_planes;
    kernels.panel_product = avx512_vnni::panel_product;
    return kernels;
  }();
  return &table;
}
#endif

// Every table, the best first.
std::vector<const Kernels*> tables() {
  return {
#if defined(__x86_64__)
      avx512_vnni_table(), &avx512::table, &avx2::table,
#elif defined(__aarch64__)
      &neon::table,
#endif
      &scalar::table};
}

bool supported(const Kernels* table) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (table == avx512_vnni_table()) return supported(&avx512::table) && __builtin_cpu_supports("avx512vnni");
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

const Kernels* best() {
  for (const Kernels* table : tables())
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
  for (const Kernels* table : tables()) {
    if (std::strcmp(table->name, name) != 0 || !supported(table)) continue;
    chosen().store(table);
    return true;
  }
  return false;
}

}  // namespace mlx_serving::cpu
