#include "machine.hpp"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <vector>

namespace machine {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

enum class State { ready, at_barrier, at_exchange, done };

// A context enters a fibre's stack; from then on jumps do, which unlike it make no system calls.
struct Fibre {
  ucontext_t context;
  jmp_buf place;
  bool is_entered;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state;
  uint3 member;
  int warp, lane;
  int turn;  // of the two places for what it gives: the others may still read the last one
};

struct Warp {
  uint32_t given[2][kWarp];
  int arrived;
  Exchange kind;
};

struct Running {
  jmp_buf scheduler;
  std::vector<std::unique_ptr<Fibre>> fibres;
  std::vector<Warp> warps;
  Fibre* now = nullptr;
  uint3 group, groups;
  size_t at_barrier;
  const char* failure;
  void (*body)(void*);
  void* argument;
};

thread_local Running machine_of_thread;

void wait(State state) {
  Running& all = machine_of_thread;
  all.now->state = state;
  if (!_setjmp(all.now->place)) _longjmp(all.scheduler, 1);
}

void go_on(Running& all, Fibre& fibre) {
  all.now = &fibre;
  if (_setjmp(all.scheduler)) return;
  if (fibre.is_entered) _longjmp(fibre.place, 1);
  fibre.is_entered = true;
  setcontext(&fibre.context);
}

void enter() {
  Running& all = machine_of_thread;
  all.body(all.argument);
  all.now->state = State::done;
  _longjmp(all.scheduler, 1);
}

void start(Fibre& fibre) {
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack.get();
  fibre.context.uc_stack.ss_size = kStack;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, enter, 0);
  fibre.is_entered = false;
  fibre.state = State::ready;
  fibre.turn = 0;
}

// xorshift32 (Marsaglia, 2003).
uint32_t next(uint32_t& random) {
  random ^= random << 13;
  random ^= random >> 17;
  return random ^= random << 5;
}

template <typename T>
void shuffle(std::vector<T>& all, uint32_t& random) {
  for (size_t left = all.size(); left > 1; --left) std::swap(all[left - 1], all[next(random) % left]);
}

// Let go the threads of a warp that have all arrived at an exchange.
void release_warp(Running& all, size_t number) {
  Warp& warp = all.warps[number];
  if (warp.arrived != kWarp) return;
  warp.arrived = 0;
  for (size_t lane = 0; lane < kWarp; ++lane) all.fibres[number * kWarp + lane]->state = State::ready;
}

// Let go the threads of the group if all have arrived at a barrier. Whether they had.
bool release_group(Running& all, size_t count) {
  if (all.at_barrier != count) return false;
  all.at_barrier = 0;
  for (size_t i = 0; i < count; ++i) all.fibres[i]->state = State::ready;
  return true;
}

// Run the threads of one warp that are ready, in any order. Whether there were any.
bool run_warp(Running& all, size_t number, uint32_t& random) {
  std::vector<Fibre*> ready;
  for (size_t lane = 0; lane < kWarp; ++lane) {
    Fibre* fibre = all.fibres[number * kWarp + lane].get();
    if (fibre->state == State::ready) ready.push_back(fibre);
  }
  shuffle(ready, random);
  for (Fibre* fibre : ready) {
    go_on(all, *fibre);
    if (all.failure) break;
  }
  return !ready.empty();
}

// One warp gets as far as it can before the next one moves, so that a missing barrier shows.
void run_group(Running& all, size_t count, uint32_t& random) {
  for (size_t i = 0; i < count; ++i) start(*all.fibres[i]);
  all.at_barrier = 0;
  all.warps.assign(count / kWarp, Warp{});
  std::vector<size_t> order;
  for (size_t i = 0; i < count / kWarp; ++i) order.push_back(i);
  do {
    shuffle(order, random);
    for (size_t number : order) {
      while (!all.failure && run_warp(all, number, random)) release_warp(all, number);
      if (all.failure) return;
    }
  } while (release_group(all, count));
  for (size_t i = 0; i < count; ++i) {
    if (all.fibres[i]->state != State::done) all.failure = "threads wait for others that never arrive";
  }
}

}  // namespace

const uint3& group() { return machine_of_thread.group; }
const uint3& groups() { return machine_of_thread.groups; }
const uint3& member() { return machine_of_thread.now->member; }

void barrier() {
  ++machine_of_thread.at_barrier;
  wait(State::at_barrier);
}

uint32_t exchange(uint32_t bits, Exchange kind, int argument) {
  Running& all = machine_of_thread;
  Fibre& fibre = *all.now;
  Warp& warp = all.warps[fibre.warp];
  if (warp.arrived && warp.kind != kind) all.failure = "threads of a warp are at different exchanges";
  warp.kind = kind;
  int turn = fibre.turn;
  fibre.turn ^= 1;
  warp.given[turn][fibre.lane] = bits;
  ++warp.arrived;
  wait(State::at_exchange);
  int from = kind == Exchange::exclusive_or ? fibre.lane ^ argument
             : kind == Exchange::up         ? fibre.lane - argument
                                            : argument;
  // What comes from before the first lane is undefined on Metal: something that shows.
  return from < 0 ? 0x7fc0dead : warp.given[turn][from];
}

const char* launch(uint3 grid, uint3 threads, unsigned seed, void (*body)(void*), void* argument) {
  Running& all = machine_of_thread;
  size_t count = threads.x;
  if (threads.y != 1 || threads.z != 1 || count % kWarp || grid.x % threads.x) return "odd sizes of grid or group";
  while (all.fibres.size() < count) all.fibres.push_back(std::make_unique<Fibre>());
  for (size_t i = 0; i < count; ++i) {
    all.fibres[i]->member = {uint32_t(i), 0, 0};
    all.fibres[i]->warp = int(i / kWarp);
    all.fibres[i]->lane = int(i % kWarp);
  }
  all.groups = {grid.x / threads.x, grid.y, grid.z};
  all.body = body;
  all.argument = argument;
  all.failure = nullptr;
  uint32_t random = 2 * seed + 1;
  std::vector<uint3> order;
  for (uint32_t z = 0; z < all.groups.z; ++z) {
    for (uint32_t y = 0; y < all.groups.y; ++y) {
      for (uint32_t x = 0; x < all.groups.x; ++x) order.push_back({x, y, z});
    }
  }
  shuffle(order, random);
  for (const uint3& place : order) {
    all.group = place;
    run_group(all, count, random);
    if (all.failure) break;
  }
  return all.failure;
}

}  // namespace machine
