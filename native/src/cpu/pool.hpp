// One pool of threads for all kernels. Work is a number of chunks; the calling thread takes its share.
#pragma once

namespace mlx_serving::cpu {

using ChunkFunction = void (*)(void* context, int chunk);

// How many threads share the work, the calling one included; at least 1. Starts them at the first call that needs
// them. May be called again; threads are never ended, as the process may end while they wait.
void set_threads(int count);
int threads();

// Runs function(context, chunk) for every chunk in [0, chunks) and returns when all are done. While another thread
// is inside, the caller does all chunks itself, so no caller waits for another's work. What a chunk throws first, in any
// thread, is thrown when no chunk runs any more; then some may not have run.
void run_chunks(int chunks, ChunkFunction function, void* context);

template <class Function>
void parallel(int chunks, Function& function) {
  run_chunks(
      chunks, [](void* context, int chunk) { (*static_cast<Function*>(context))(chunk); }, &function);
}

}  // namespace mlx_serving::cpu
