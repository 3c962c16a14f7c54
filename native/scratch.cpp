#include "scratch.h"

#include <atomic>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace svertka {
namespace {

constexpr std::size_t huge = std::size_t{2} << 20;  // bytes of a large page

std::atomic<bool> poisoned = false;

class Memory {
  public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { release(); }

    float* take(std::size_t count) {
        if (count > count_) {
            release();
            const std::size_t bytes = (count * sizeof(float) + huge - 1) / huge * huge;
            numbers_ = static_cast<float*>(::operator new(bytes, std::align_val_t{huge}));
            count_ = bytes / sizeof(float);
#if defined(__linux__)
            madvise(numbers_, bytes, MADV_HUGEPAGE);  // a hint; tiles are on many pages
#endif
        }
        // All ones are NaN as float and as bfloat16. Memory after `count` is also filled, because nothing may read it.
        if (poisoned.load(std::memory_order_relaxed)) std::memset(numbers_, 0xff, count_ * sizeof(float));
        return numbers_;
    }

  private:
    void release() {
        ::operator delete(numbers_, std::align_val_t{huge});
        numbers_ = nullptr;
        count_ = 0;
    }

    float* numbers_ = nullptr;
    std::size_t count_ = 0;
};

}  // namespace

float* scratch(std::size_t count, Use use) {
    thread_local Memory own[2];
    return own[static_cast<int>(use)].take(count);
}

void poison_scratch(bool on) { poisoned = on; }

}  // namespace svertka
