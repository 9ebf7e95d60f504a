// Threads, which take tasks in any order, and the memory that they work in.
#pragma once

#include <cstdlib>

#include "interface.h"
#include "vector.h"

namespace {

// Runs body(task, worker) for every task in [0, tasks). A worker is a thread, at most `workers` of them.
template <typename Call, typename Body>
void parallel(const Call& call, Index workers, Index tasks, const Body& body) {
    struct Shared {
        const Body& body;
        Index tasks, next;
    } shared{body, tasks, 0};
    auto work = [](int64_t first, int64_t last, void* data) {
        Shared& shared = *static_cast<Shared*>(data);
        for (Index worker = first; worker < last; ++worker)
            for (Index task; (task = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED)) < shared.tasks;)
                shared.body(task, worker);
    };
    workers = least(workers, tasks);
    if (workers > 1)
        call.parallel_for(0, workers, 1, work, &shared);
    else
        work(0, 1, &shared);
}

// A block of memory of the last call, reused by the next: fresh pages cost more than small problems do.
struct CachedBlock {
    void* memory;
    Index bytes;
};
constexpr Index MAX_CACHED_BYTES = Index{1} << 26;
CachedBlock* cached_block = nullptr;

// The memory of a call, cut into arrays of elements T.
template <typename T>
class Workspace {
   public:
    // Adds an array of `count` elements; returns its position.
    Index reserve(Index count) {
        Index position = elements_;
        elements_ += round_up(count, 64);
        return position;
    }

    bool allocate() {
        Index bytes = elements_ * sizeof(T) + 64;
        block_ = __atomic_exchange_n(&cached_block, nullptr, __ATOMIC_ACQUIRE);
        if (block_ && block_->bytes < bytes) release(block_);
        if (!block_) {
            block_ = static_cast<CachedBlock*>(std::malloc(sizeof(CachedBlock)));
            if (block_) *block_ = {std::malloc(bytes), bytes};
            if (block_ && !block_->memory) release(block_);
        }
        return block_ != nullptr;
    }

    T* at(Index position) const {
        auto start = (reinterpret_cast<uintptr_t>(block_->memory) + 63) / 64 * 64;
        return reinterpret_cast<T*>(start) + position;
    }

    ~Workspace() {
        if (block_ && block_->bytes <= MAX_CACHED_BYTES)
            block_ = __atomic_exchange_n(&cached_block, block_, __ATOMIC_RELEASE);
        if (block_) release(block_);
    }

   private:
    static void release(CachedBlock*& block) {
        std::free(block->memory);
        std::free(block);
        block = nullptr;
    }

    Index elements_ = 0;
    CachedBlock* block_ = nullptr;
};

}  // namespace
