#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace mlx_serving::cpu {
namespace {

// Turns of waiting before a thread sleeps: between two products of one forward pass the next work comes within a few
// microseconds; longer spinning would take the core from the rest of the process.
constexpr int kWorkerSpins = 4000;
// A caller whose last chunk is with a descheduled thread gives its core away after this many turns.
constexpr int kCallerSpins = 2000;
constexpr int kMostWorkers = 255;

// Chunks that lie together: a thread goes through its own share in order, so that what it fetches ahead is its own, and
// then helps the others with theirs.
struct alignas(64) Share {
  std::atomic<int> next{0};
  int end = 0;
};

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Pool {
  std::mutex entry;
  std::atomic<int> wanted{1};
  int started = 1;

  ChunkFunction function = nullptr;
  void* context = nullptr;
  int sharing = 1;
  Share shares[kMostWorkers + 1];
  std::mutex failing;
  std::exception_ptr failure;  // what a chunk of this work threw first

  // Twice the number of works given out, and one more while there may be chunks to take. A worker counts itself in and
  // looks; the caller closes and then waits until nobody is inside. So whoever comes late, because its core was taken,
  // holds nobody up.
  alignas(64) std::atomic<unsigned> turn{0};
  alignas(64) std::atomic<int> inside{0};
  alignas(64) std::atomic<int> asleep{0};

  void take(int own) noexcept {
    try {
      for (int i = 0; i < sharing; i++) {
        Share& share = shares[(own + i) % sharing];
        // A look costs less than counting on what is empty.
        if (share.next.load(std::memory_order_relaxed) >= share.end) continue;
        for (int chunk; (chunk = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
          function(context, chunk);
      }
    } catch (...) {
      std::lock_guard<std::mutex> hold(failing);
      if (!failure) failure = std::current_exception();
    }
  }

  void work(int index, unsigned seen) {
    for (;;) {
      seen = await(seen);
      inside.fetch_add(1);
      if (is_open(turn.load()) && index + 1 < sharing) take(index + 1);
      inside.fetch_sub(1, std::memory_order_release);
    }
  }

  static bool is_open(unsigned turn) { return turn % 2 == 1; }

  // The turn after `seen` that is open.
  unsigned await(unsigned seen) {
    for (int spin = 0; spin < kWorkerSpins; spin++) {
      unsigned now = turn.load(std::memory_order_acquire);
      if (now != seen && is_open(now)) return now;
      relax();
    }
    asleep.fetch_add(1);
    unsigned now = turn.load();
    for (; now == seen || !is_open(now); now = turn.load()) turn.wait(now);
    asleep.fetch_sub(1);
    return now;
  }

  // By the one thread that holds `entry`.
  void run(int count, ChunkFunction chunk_function, void* chunk_context) {
    function = chunk_function;
    context = chunk_context;
    sharing = std::min({started, wanted.load(), count});
    for (int i = 0; i < sharing; i++) {
      shares[i].end = int(long(count) * (i + 1) / sharing);
      shares[i].next.store(int(long(count) * i / sharing), std::memory_order_relaxed);
    }
    unsigned closed = turn.load(std::memory_order_relaxed) + 2;
    turn.store(closed - 1);
    if (asleep.load() > 0) turn.notify_all();
    take(0);
    turn.store(closed);
    for (int spin = 0; inside.load() > 0; spin++) {
      if (spin < kCallerSpins) relax();
      else std::this_thread::yield();
    }
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  }
};

// Never destroyed: its threads may wait in it while the process ends.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void set_threads(int count) {
  Pool& shared = pool();
  std::lock_guard<std::mutex> hold(shared.entry);
  shared.wanted = std::clamp(count, 1, kMostWorkers);
  for (; shared.started < shared.wanted; shared.started++) {
    int index = shared.started - 1;
    unsigned seen = shared.turn.load();
    std::thread([&shared, index, seen] { shared.work(index, seen); }).detach();
  }
}

int threads() {
  return pool().wanted;
}

void run_chunks(int chunks, ChunkFunction function, void* context) {
  Pool& shared = pool();
  std::unique_lock<std::mutex> hold(shared.entry, std::defer_lock);
  if (chunks > 1 && shared.wanted > 1 && hold.try_lock()) {
    shared.run(chunks, function, context);
    return;
  }
  for (int chunk = 0; chunk < chunks; chunk++) function(context, chunk);
}

}  // namespace mlx_serving::cpu
