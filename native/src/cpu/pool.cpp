#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

namespace mlx_serving::cpu {
namespace {

// Turns of waiting before a thread sleeps: between two products of one forward pass the next work comes within a few
// microseconds; longer spinning would take the core from the rest of the process.
constexpr int kWorkerSpins = 4000;
// A caller whose last chunk is with a descheduled thread gives its core away after this many turns.
constexpr int kCallerSpins = 2000;
constexpr unsigned kMostWorkers = 255;

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
  int wanted = 1;
  int started = 1;

  ChunkFunction function = nullptr;
  void* context = nullptr;
  int sharing = 1;
  Share shares[kMostWorkers + 1];

  // A counter of the work given out, with the number of workers that take part in its lowest byte: a worker learns
  // both at once, so one that does not take part can never mix two works up.
  alignas(64) std::atomic<unsigned> turn{0};
  alignas(64) std::atomic<int> finished{0};
  alignas(64) std::atomic<int> asleep{0};

  void take(int own) {
    for (int i = 0; i < sharing; i++) {
      Share& share = shares[(own + i) % sharing];
      for (int chunk; (chunk = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
        function(context, chunk);
    }
  }

  void work(int index, unsigned seen) {
    for (;;) {
      seen = await(seen);
      if (index < int(seen & kMostWorkers)) {
        take(index + 1);
        finished.fetch_add(1, std::memory_order_release);
      }
    }
  }

  unsigned await(unsigned seen) {
    for (int spin = 0; spin < kWorkerSpins; spin++) {
      unsigned now = turn.load(std::memory_order_acquire);
      if (now != seen) return now;
      relax();
    }
    asleep.fetch_add(1);
    while (turn.load() == seen) turn.wait(seen);
    asleep.fetch_sub(1);
    return turn.load(std::memory_order_acquire);
  }

  void run(int count, ChunkFunction chunk_function, void* chunk_context) {
    int taking = std::min(started, std::min(wanted, count)) - 1;
    function = chunk_function;
    context = chunk_context;
    sharing = taking + 1;
    for (int i = 0; i < sharing; i++) {
      shares[i].end = int(long(count) * (i + 1) / sharing);
      shares[i].next.store(int(long(count) * i / sharing), std::memory_order_relaxed);
    }
    finished.store(0, std::memory_order_relaxed);
    turn.store((turn.load(std::memory_order_relaxed) & ~kMostWorkers) + kMostWorkers + 1 + unsigned(taking));
    if (asleep.load() > 0) turn.notify_all();
    take(0);
    for (int spin = 0; finished.load(std::memory_order_acquire) < taking; spin++) {
      if (spin < kCallerSpins) relax();
      else std::this_thread::yield();
    }
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
  shared.wanted = std::clamp(count, 1, int(kMostWorkers));
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
  if (chunks > 1 && shared.wanted > 1 && shared.entry.try_lock()) {
    shared.run(chunks, function, context);
    shared.entry.unlock();
    return;
  }
  for (int chunk = 0; chunk < chunks; chunk++) function(context, chunk);
}

}  // namespace mlx_serving::cpu
