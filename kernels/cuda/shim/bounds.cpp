// What a launch may touch, and what of it it did touch. Off unless the launch names ranges (`weft_shim_bound`).
//
// A launch on a device says by its arguments where the kernel may read and write. Here every access is held against that, to the byte: one
// outside all ranges, or a write where the launch only reads, ends the launch with an error. Of ranges that ask for it, the touched bytes
// are kept, one bit each, so that a caller learns which parts of a pool a kernel reached through a table.
#include <cstring>
#include <unordered_map>
#include <vector>

#include "internal.h"

namespace shim::bounds {
namespace {

constexpr uintptr_t LINE = 64;

struct Range {
    uintptr_t begin, end;
    uint32_t may_write, is_kept;
};
// Bit i: byte i of the line.
struct Line {
    uint64_t read = 0, written = 0;
};
struct Touched {
    uintptr_t at;
    uint64_t read, written;
};

// A launch runs in the thread that asked for it, its fibres too.
thread_local std::vector<Range> ranges;
thread_local size_t last_range = 0;
thread_local std::unordered_map<uintptr_t, Line> lines;
thread_local bool is_on = false;

const Range* range_of(uintptr_t at, size_t bytes, bool writes) {
    const auto fits = [=](const Range& range) {
        return at >= range.begin && at + bytes <= range.end && (range.may_write || !writes);
    };
    if (last_range < ranges.size() && fits(ranges[last_range])) return &ranges[last_range];
    for (size_t i = 0; i < ranges.size(); ++i) {
        if (!fits(ranges[i])) continue;
        last_range = i;
        return &ranges[i];
    }
    return nullptr;
}

}  // namespace

void note(uintptr_t at, size_t bytes, bool reads, bool writes) {
    if (!is_on) return;
    const Range* const range = range_of(at, bytes, writes);
    if (!range) {
        fail("thread %d %s %zu bytes at %#zx, outside of what the launch says it %s", running_thread, writes ? "writes" : "reads", bytes,
             size_t(at), writes ? "writes" : "reads");
        return;
    }
    if (!range->is_kept) return;
    for (uintptr_t byte = at; byte < at + bytes;) {
        const uintptr_t line = byte / LINE * LINE, end = at + bytes < line + LINE ? at + bytes : line + LINE;
        const uint64_t count = end - byte, bits = (count == LINE ? ~uint64_t(0) : (uint64_t(1) << count) - 1) << (byte - line);
        Line& of = lines[line];
        if (reads) of.read |= bits;
        if (writes) of.written |= bits;
        byte = end;
    }
}

// For the launches of this thread from now on, until the next call. No ranges: no check.
extern "C" void weft_shim_bound(const Range* from, size_t count) {
    ranges.assign(from, from + count);
    lines.clear();
    last_range = 0;
    is_on = count > 0;
}

// Copies up to `capacity` of the touched lines, in no order, and says how many there are.
extern "C" size_t weft_shim_touched(Touched* to, size_t capacity) {
    size_t i = 0;
    for (const auto& [at, line] : lines) {
        if (i == capacity) break;
        to[i++] = {at, line.read, line.written};
    }
    return lines.size();
}

}  // namespace shim::bounds
