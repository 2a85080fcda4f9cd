// The warp's matrix products and a thread's asynchronous copies.
#include "mma.h"

#include <cstring>
#include <deque>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_fp8.h"
#include "internal.h"

namespace shim {
namespace {

constexpr int LANES = 32;

struct Fragments {
    const unsigned (*a)[4];
    const unsigned (*b)[2];
    void* d;
};

float widened(__half value) { return __half2float(value); }
float widened(__nv_bfloat16 value) { return __bfloat162float(value); }
float widened(__nv_fp8_e4m3 value) { return float(value); }
int widened(signed char value) { return value; }

template <typename T>
auto element(unsigned bits, int i) {
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(&bits) + i * sizeof(T), sizeof(T));
    return widened(value);
}

// As the device wraps: without an overflow that C++ would not define.
float sum(float a, float b, float c) { return a * b + c; }
int sum(int a, int b, int c) { return int(unsigned(a) * unsigned(b) + unsigned(c)); }

template <typename T, typename D>
void multiply(void* const (&lanes)[LANES]) {
    constexpr int E = 4 / sizeof(T), K = 8 * E;
    D a[16][K], b[K][8], d[16][8];
    for (int lane = 0; lane < LANES; ++lane) {
        const Fragments& of = *static_cast<const Fragments*>(lanes[lane]);
        const int group = lane / 4, member = lane % 4;
        for (int r = 0; r < 4; ++r)
            for (int i = 0; i < E; ++i) a[group + 8 * (r % 2)][member * E + i + 4 * E * (r / 2)] = element<T>((*of.a)[r], i);
        for (int r = 0; r < 2; ++r)
            for (int i = 0; i < E; ++i) b[member * E + i + 4 * E * r][group] = element<T>((*of.b)[r], i);
        for (int i = 0; i < 4; ++i) d[group + 8 * (i / 2)][2 * member + i % 2] = static_cast<const D*>(of.d)[i];
    }
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < K; ++k)
            for (int column = 0; column < 8; ++column) d[row][column] = sum(a[row][k], b[k][column], d[row][column]);
    for (int lane = 0; lane < LANES; ++lane) {
        const Fragments& of = *static_cast<const Fragments*>(lanes[lane]);
        for (int i = 0; i < 4; ++i) static_cast<D*>(of.d)[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
}

template <typename T, typename D>
void mma(D (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Fragments mine = {&a, &b, d};
    meet(&mine, multiply<T, D>);
}

struct Rows {
    unsigned short row[8];
    unsigned* to;
    bool turned;
};

void spread(void* const (&lanes)[LANES]) {
    for (int lane = 0; lane < LANES; ++lane) {
        const Rows& of = *static_cast<const Rows*>(lanes[lane]);
        const int group = lane / 4, member = lane % 4;
        for (int matrix = 0; matrix < 4; ++matrix) {
            const auto at = [&](int row, int column) -> unsigned {
                return static_cast<const Rows*>(lanes[8 * matrix + row])->row[column];
            };
            const unsigned low = of.turned ? at(2 * member, group) : at(group, 2 * member);
            const unsigned high = of.turned ? at(2 * member + 1, group) : at(group, 2 * member + 1);
            of.to[matrix] = low | high << 16;
        }
    }
}

struct Copy {
    void* to;
    const void* from;
    bool exists;
};

// Of one thread: groups that are committed, oldest first, and the copies since.
struct Copies {
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open;
};
std::vector<Copies> copies;

Copies& mine() {
    if (copies.size() <= size_t(running_thread)) copies.resize(size_t(running_thread) + 1);
    return copies[size_t(running_thread)];
}

bool is_aligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

}  // namespace

void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma<__half>(d, a, b); }
void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma<__nv_bfloat16>(d, a, b); }
void mma_e4m3(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma<__nv_fp8_e4m3>(d, a, b); }
void mma_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma<signed char>(d, a, b); }

void load_matrices(unsigned (&to)[4], const void* row, bool turned) {
    if (!is_aligned(row)) fail("a row of a matrix at %p, which is no multiple of 16", row);
    races::note(row, 16, races::Access::Read);
    Rows mine;
    std::memcpy(mine.row, row, 16);
    mine.to = to;
    mine.turned = turned;
    meet(&mine, spread);
}

void copy16(void* to_shared, const void* from, bool exists) {
    if (!is_aligned(to_shared) || !is_aligned(from)) fail("a copy from %p to %p, of which one is no multiple of 16", from, to_shared);
    if (exists) races::note(from, 16, races::Access::Read);
    races::note(to_shared, 16, races::Access::Write);
    std::memset(to_shared, 0xff, 16);
    mine().open.push_back({to_shared, from, exists});
}

void commit_copies() {
    Copies& of = mine();
    of.groups.push_back(std::move(of.open));
    of.open.clear();
}

void wait_for_copies(int pending) {
    Copies& of = mine();
    for (; of.groups.size() > size_t(pending); of.groups.pop_front()) {
        for (const Copy& copy : of.groups.front()) {
            races::note(copy.to, 16, races::Access::Write);
            if (copy.exists) {
                std::memcpy(copy.to, copy.from, 16);
            } else {
                std::memset(copy.to, 0, 16);
            }
        }
    }
}

void forget_copies() {
    for (Copies& of : copies) of = Copies();
}

}  // namespace shim
