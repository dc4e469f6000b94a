// Memory that a thread keeps between calls.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

namespace mlx_serving::cpu {

class Scratch {
 public:
  // At least `count` floats, aligned to 64 bytes; what they held before may be lost.
  float* floats(size_t count) {
    if (count > size_) {
      size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
      memory_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      if (!memory_) throw std::bad_alloc();
      size_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float[], Free> memory_;
  size_t size_ = 0;
};

}  // namespace mlx_serving::cpu
