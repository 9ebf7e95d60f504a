// Threads, which take tasks in any order, and the memory that they work in.
#pragma once

#include <cstdlib>

#include "interface.h"
#include "vector.h"

namespace {

// Runs body(task, worker) for every task in [0, tasks). Workers are threads, at most `workers` of them.
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
    workers = minimum(workers, tasks);
    if (workers > 1)
        call.parallel_for(0, workers, 1, work, &shared);
    else
        work(0, 1, &shared);
}

// Cuts a block of memory into arrays. Without a block it adds up their sizes.
class Arena {
   public:
    explicit Arena(char* start = nullptr) : start_(start) {}

    template <typename T>
    T* take(Index count) {
        T* array = start_ ? reinterpret_cast<T*>(start_ + bytes_) : nullptr;
        bytes_ += round_up(count * sizeof(T), ALIGNMENT);
        return array;
    }

    Index bytes() const { return bytes_; }

    static constexpr Index ALIGNMENT = 64;

   private:
    char* start_;
    Index bytes_ = 0;
};

// The memory of a call: arrays that all workers share, and the scratch memory of each.
//
// The block of the last call is kept for the next, because fresh pages cost more than a small problem does.
class Workspace {
   public:
    // Allocates what `lay_out(arena)` takes once and what `lay_out_scratch(arena)` takes for each worker, and
    // calls `lay_out` with the memory.
    template <typename LayOut, typename LayOutScratch>
    bool allocate(Index workers, const LayOut& lay_out, const LayOutScratch& lay_out_scratch) {
        Arena shared, scratch;
        lay_out(shared);
        lay_out_scratch(scratch);
        const Index bytes = shared.bytes() + workers * scratch.bytes();
        block_ = __atomic_exchange_n(&cached, nullptr, __ATOMIC_ACQUIRE);
        if (block_ && block_->bytes < bytes) release();
        if (!block_) {
            block_ = static_cast<Block*>(std::malloc(Arena::ALIGNMENT * 2 + bytes));
            if (!block_) return false;
            block_->bytes = bytes;
        }
        Index start = round_up(reinterpret_cast<Index>(block_ + 1), Arena::ALIGNMENT);
        Arena arena(reinterpret_cast<char*>(start));
        lay_out(arena);
        scratch_ = reinterpret_cast<char*>(start + shared.bytes());
        scratch_bytes_ = scratch.bytes();
        return true;
    }

    Arena scratch(Index worker) const { return Arena(scratch_ + worker * scratch_bytes_); }

    ~Workspace() {
        if (block_ && block_->bytes <= MAX_CACHED_BYTES)
            block_ = __atomic_exchange_n(&cached, block_, __ATOMIC_ACQ_REL);
        release();
    }

   private:
    struct Block {
        Index bytes;
    };

    static constexpr Index MAX_CACHED_BYTES = Index{1} << 26;
    static inline Block* cached = nullptr;

    void release() {
        std::free(block_);
        block_ = nullptr;
    }

    Block* block_ = nullptr;
    char* scratch_ = nullptr;
    Index scratch_bytes_ = 0;
};

}  // namespace
