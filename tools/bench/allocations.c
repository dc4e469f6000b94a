/* Counts what Python allocates between `start` and `stop`: calls of its two allocators for memory and objects, and the
   bytes that these calls asked for. What comes out of the free lists of tuples, lists and the like is no call. Loaded with
   ctypes.PyDLL by allocations.py, so that the interpreter's lock is held. */
#include <Python.h>

static const PyMemAllocatorDomain domains[2] = {PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static PyMemAllocatorEx under[2];
static unsigned long long calls, bytes;

static void *count(void *pointer, size_t size) {
    calls += 1;
    bytes += size;
    return pointer;
}

static void *take(void *context, size_t size) {
    PyMemAllocatorEx *allocator = context;
    return count(allocator->malloc(allocator->ctx, size), size);
}

static void *take_zeroed(void *context, size_t number, size_t size) {
    PyMemAllocatorEx *allocator = context;
    return count(allocator->calloc(allocator->ctx, number, size), number * size);
}

static void *change(void *context, void *pointer, size_t size) {
    PyMemAllocatorEx *allocator = context;
    return count(allocator->realloc(allocator->ctx, pointer, size), size);
}

static void give_back(void *context, void *pointer) {
    PyMemAllocatorEx *allocator = context;
    allocator->free(allocator->ctx, pointer);
}

void start(void) {
    for (int i = 0; i < 2; i++) {
        PyMemAllocatorEx counting = {&under[i], take, take_zeroed, change, give_back};
        PyMem_GetAllocator(domains[i], &under[i]);
        PyMem_SetAllocator(domains[i], &counting);
    }
    calls = bytes = 0;
}

void stop(unsigned long long *found_calls, unsigned long long *found_bytes) {
    *found_calls = calls;
    *found_bytes = bytes;
    for (int i = 0; i < 2; i++) PyMem_SetAllocator(domains[i], &under[i]);
}
