// One row of logits as the sampler sees it: the table that says how, the changed logits, maxima and sums over all of it.
#pragma once
#include "sampling_math.cuh"

namespace weft {

constexpr int SAMPLE_WARPS = 16;
constexpr int SAMPLE_THREADS = SAMPLE_WARPS * WARP;
// Logits of one load by a thread; four threads, a quad, take 16 in a row.
constexpr int FOUR = 4;
constexpr int QUADS = SAMPLE_THREADS / FOUR;
// Logits whose maximum is kept, and whose weights are summed in f32 before the sum goes on in f64. As the engine's.
constexpr int BLOCK = 64;
constexpr int CHUNK = 1024;
constexpr int VOCABULARY_MAX = 524288;
constexpr int BLOCKS_MAX = VOCABULARY_MAX / BLOCK;
constexpr int CHUNKS_MAX = VOCABULARY_MAX / CHUNK;
// Candidates that are sorted in shared memory.
constexpr int CANDIDATES = 2048;
constexpr int BINS = 2048;
constexpr int RUNS = SAMPLE_THREADS;

// What is added to the logit of a token. 8 bytes; src/sampling.rs has the same, and the ones below.
struct LogitBias {
    unsigned id;
    float value;
};

// How a row is sampled. 104 bytes. A value that turns a setting off is one of these alone; the host makes it so.
struct SampleRow {
    unsigned long long seed;
    unsigned long long position;
    // Bit id % 32 of word id / 32: allowed. Beyond `mask_words` all are forbidden; null allows all.
    const unsigned* mask;
    // [ceil(vocabulary / 32)] Bit as above: the token has a count or a bias. Null: none has, and there are no counts.
    unsigned* marked;
    // [vocabulary] 0 for a token that did not occur, else 1 + how often it did in the output. Null: nothing is penalised.
    unsigned* counts;
    // Ascending by id.
    const LogitBias* biases;
    unsigned mask_words;
    unsigned bias_count;
    // 0: greedy.
    float inverse_temperature;
    // Off: 1, 0, 1; `min_p_slack` is what the largest logit exceeds those by that min_p keeps, rounded down.
    float top_p, min_p, min_p_slack, typical_p;
    // Off: 1, 0, 0.
    float repetition_penalty, frequency_penalty, presence_penalty;
    // 0: off.
    unsigned top_k;
    // How many of the most probable tokens to report; 0: none.
    unsigned alternatives;
    // 0: saves the pass that the log-probability of the token takes; with alternatives 1.
    unsigned wants_logprob;
    // Which row of the logits it is of, so that rows that nobody samples may lie between.
    unsigned logits_row;
};

// Memory that the threads of a block share, 45 KiB.
struct SampleShared {
    // Either the maxima of blocks, f32 [BLOCKS_MAX], or candidates: keys [CANDIDATES], and then what belongs to each [CANDIDATES].
    unsigned long long pool[2 * CANDIDATES];
    union {
        unsigned bins[BINS];
        double runs[RUNS];
    };
    // Sums of the weights of chunks: of the model itself, and of what is drawn from.
    float model_sums[CHUNKS_MAX];
    float sums[CHUNKS_MAX];
    float warp_model_max[SAMPLE_WARPS];
    float warp_max[SAMPLE_WARPS];
    unsigned warp_count[SAMPLE_WARPS];
    unsigned found, below, inside;
    double value;
};

// What one thread has worked out, for all. All threads call it.
__device__ __forceinline__ double from_thread_0(double value, SampleShared& shared) {
    if (threadIdx.x == 0) shared.value = value;
    __syncthreads();
    value = shared.value;
    __syncthreads();
    return value;
}

template <typename X>
struct Logits {
    const X* values;
    int count;
    // Each multiple of four lies at a multiple of its size.
    bool aligned;

    __device__ __forceinline__ Logits(const X* from, int count)
        : values(from), count(count), aligned(reinterpret_cast<size_t>(from) % (FOUR * sizeof(X)) == 0) {}

    // Four logits from `id` on, a multiple of four; -inf beyond the end.
    __device__ __forceinline__ void load(int id, float (&to)[FOUR]) const {
        if (aligned && id + FOUR <= count) {
            if (sizeof(X) == 4) {
                const float4 bits = *reinterpret_cast<const float4*>(values + id);
                to[0] = bits.x, to[1] = bits.y, to[2] = bits.z, to[3] = bits.w;
            } else {
                const unsigned long long bits = *reinterpret_cast<const unsigned long long*>(values + id);
                const X* four = reinterpret_cast<const X*>(&bits);
#pragma unroll
                for (int i = 0; i < FOUR; ++i) to[i] = to_float(four[i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < FOUR; ++i) to[i] = id + i < count ? to_float(values[id + i]) : __uint_as_float(0xff800000u);
        }
    }
};

__device__ __forceinline__ bool changes_logits(const SampleRow& row) { return row.mask != nullptr || row.marked != nullptr; }

// The logit of a token that is marked: with its bias, which the engine does not have, then with the penalties, as there.
__device__ inline float with_bias_and_penalties(const SampleRow& row, int id, float logit) {
    unsigned low = 0, high = row.bias_count;
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (row.biases[middle].id < static_cast<unsigned>(id)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low < row.bias_count && row.biases[low].id == static_cast<unsigned>(id)) logit = __fadd_rn(logit, row.biases[low].value);
    const unsigned count = row.counts != nullptr ? row.counts[id] : 0;
    if (count == 0) return logit;
    if (row.repetition_penalty != 1.0f) {
        logit = logit > 0.0f ? __fdiv_rn(logit, row.repetition_penalty) : __fmul_rn(logit, row.repetition_penalty);
    }
    if (count > 1) {
        const float by_count = __fmul_rn(row.frequency_penalty, static_cast<float>(count - 1));
        logit = __fsub_rn(logit, __fadd_rn(by_count, row.presence_penalty));
    }
    return logit;
}

// Mask, bias and penalties on four logits from `id` on. Two words are read for four logits; marked tokens are few.
__device__ __forceinline__ void change(const SampleRow& row, int id, int count, float (&logits)[FOUR]) {
    if (id >= count) return;
    if (row.mask != nullptr) {
        const unsigned word = static_cast<unsigned>(id / 32) < row.mask_words ? row.mask[id / 32] : 0;
#pragma unroll
        for (int i = 0; i < FOUR; ++i)
            if (!(word >> (id % 32 + i) & 1)) logits[i] = __uint_as_float(0xff800000u);
    }
    if (row.marked != nullptr) {
        const unsigned word = row.marked[id / 32];
        for (unsigned left = word >> (id % 32) & 15; left != 0; left &= left - 1) {
            // One copy of what follows, and no array that is indexed by a variable: that would lie in memory.
            const int at = left & 1 ? 0 : (left & 2 ? 1 : (left & 4 ? 2 : 3));
            float logit = at == 0 ? logits[0] : (at == 1 ? logits[1] : (at == 2 ? logits[2] : logits[3]));
            logit = with_bias_and_penalties(row, id + at, logit);
#pragma unroll
            for (int i = 0; i < FOUR; ++i)
                if (i == at) logits[i] = logit;
        }
    }
}

template <typename X>
__device__ __forceinline__ void load_changed(const Logits<X>& logits, const SampleRow& row, int id, float (&to)[FOUR]) {
    logits.load(id, to);
    if (changes_logits(row)) change(row, id, logits.count, to);
}

// What the first pass finds.
struct Peaks {
    // Of the model's own logits; and of the changed ones, with the first token that has it.
    float model_max, max;
    int id;
    // No logit, changed or not, is NaN, and both maxima are finite.
    bool valid;
};

__device__ __forceinline__ bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// One pass. `maxima`, if not null, gets the largest changed logit of each block. All threads call it.
template <typename X>
__device__ __forceinline__ Peaks find_peaks(const Logits<X>& logits, const SampleRow& row, float* maxima, SampleShared& shared) {
    const float lowest = __uint_as_float(0xff800000u);
    const int quad = static_cast<int>(threadIdx.x) / FOUR, part = static_cast<int>(threadIdx.x) % FOUR;
    const int blocks = (logits.count + BLOCK - 1) / BLOCK;
    const bool changes = changes_logits(row);
    Peaks peaks = {lowest, lowest, logits.count, true};
    for (int first = 0; first < blocks; first += QUADS) {
        const int block = first + quad;
        float most = lowest;
#pragma unroll 2
        for (int step = 0; step < BLOCK / 16; ++step) {
            const int id = block * BLOCK + step * 16 + part * FOUR;
            float values[FOUR];
            logits.load(id, values);
#pragma unroll
            for (int i = 0; i < FOUR; ++i) {
                if (values[i] != values[i]) peaks.valid = false;
                if (values[i] > peaks.model_max) peaks.model_max = values[i];
            }
            if (changes) change(row, id, logits.count, values);
#pragma unroll
            for (int i = 0; i < FOUR; ++i) {
                if (values[i] != values[i]) peaks.valid = false;
                if (values[i] > most) most = values[i];
                if (values[i] > peaks.max) peaks.max = values[i], peaks.id = id + i;
            }
        }
        if (maxima != nullptr) {
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            if (part == 0 && block < blocks) maxima[block] = most;
        }
    }
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        peaks.model_max = fmaxf(peaks.model_max, __shfl_xor_sync(ALL_LANES, peaks.model_max, apart));
        const float max = __shfl_xor_sync(ALL_LANES, peaks.max, apart);
        const int id = __shfl_xor_sync(ALL_LANES, peaks.id, apart);
        if (max > peaks.max || (max == peaks.max && id < peaks.id)) peaks.max = max, peaks.id = id;
    }
    peaks.valid = __all_sync(ALL_LANES, peaks.valid);
    if (threadIdx.x % WARP == 0) {
        const int warp = static_cast<int>(threadIdx.x) / WARP;
        shared.warp_model_max[warp] = peaks.model_max;
        shared.warp_max[warp] = peaks.max;
        shared.warp_count[warp] = peaks.valid ? static_cast<unsigned>(peaks.id) : 0xffffffffu;
    }
    __syncthreads();
    for (int warp = 0; warp < SAMPLE_WARPS; ++warp) {
        const unsigned id = shared.warp_count[warp];
        const float max = shared.warp_max[warp];
        if (id == 0xffffffffu) peaks.valid = false;
        peaks.model_max = fmaxf(peaks.model_max, shared.warp_model_max[warp]);
        if (max > peaks.max || (max == peaks.max && static_cast<int>(id) < peaks.id)) {
            peaks.max = max, peaks.id = static_cast<int>(id);
        }
    }
    __syncthreads();
    peaks.valid = peaks.valid && is_finite(peaks.model_max) && is_finite(peaks.max);
    return peaks;
}

// The sum over a chunk from what each thread of a quad has: lane l of sixteen is entry l % 4 of thread l / 4.
__device__ __forceinline__ float quad_sum(const float (&lanes)[FOUR]) {
    float sums[FOUR];
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
        const float upper = __fadd_rn(lanes[i], __shfl_xor_sync(ALL_LANES, lanes[i], 2));
        sums[i] = __fadd_rn(upper, __shfl_xor_sync(ALL_LANES, upper, 1));
    }
    return __fadd_rn(__fadd_rn(sums[0], sums[2]), __fadd_rn(sums[1], sums[3]));
}

// One pass: sums of weights for each chunk, `model_sums` at temperature 1 of the model's own logits, `sums` of the changed ones;
// either may be null. In the engine's order: sixteen lanes, pairwise, then what is beyond the last sixteen. All threads call it.
template <typename X>
__device__ __forceinline__ void sum_chunks(const Logits<X>& logits, const SampleRow& row, const Peaks& peaks, float* model_sums,
                                           float* sums) {
    const int quad = static_cast<int>(threadIdx.x) / FOUR, part = static_cast<int>(threadIdx.x) % FOUR;
    const int chunks = (logits.count + CHUNK - 1) / CHUNK;
    const bool changes = changes_logits(row);
    for (int first = 0; first < chunks; first += QUADS) {
        const int begin = (first + quad) * CHUNK;
        const int left = logits.count - begin;
        const int sixteens = left >= CHUNK ? CHUNK / 16 : (left > 0 ? left / 16 : 0);
        float model_lanes[FOUR] = {}, lanes[FOUR] = {};
#pragma unroll 2
        for (int step = 0; step < sixteens; ++step) {
            const int id = begin + step * 16 + part * FOUR;
            float values[FOUR];
            logits.load(id, values);
            if (model_sums != nullptr) {
#pragma unroll
                for (int i = 0; i < FOUR; ++i)
                    model_lanes[i] = __fadd_rn(model_lanes[i], weight_of(values[i], peaks.model_max, 1.0f));
            }
            if (sums != nullptr) {
                if (changes) change(row, id, logits.count, values);
#pragma unroll
                for (int i = 0; i < FOUR; ++i)
                    lanes[i] = __fadd_rn(lanes[i], weight_of(values[i], peaks.max, row.inverse_temperature));
            }
        }
        float model_sum = quad_sum(model_lanes), sum = quad_sum(lanes);
        if (part == 0 && left > 0) {
            const int end = left < CHUNK ? logits.count : begin + CHUNK;
            for (int id = begin + sixteens * 16; id < end; id += FOUR) {
                float values[FOUR], changed[FOUR];
                logits.load(id, values);
                load_changed(logits, row, id, changed);
                for (int i = 0; i < FOUR && id + i < end; ++i) {
                    model_sum = __fadd_rn(model_sum, weight_of(values[i], peaks.model_max, 1.0f));
                    sum = __fadd_rn(sum, weight_of(changed[i], peaks.max, row.inverse_temperature));
                }
            }
            if (model_sums != nullptr) model_sums[first + quad] = model_sum;
            if (sums != nullptr) sums[first + quad] = sum;
        }
    }
    __syncthreads();
}

// The sum over chunks in f64, in order. All threads call it.
__device__ __forceinline__ double sum_of(const float* sums, int chunks, SampleShared& shared) {
    double total = 0.0;
    if (threadIdx.x == 0)
        for (int chunk = 0; chunk < chunks; ++chunk) total += static_cast<double>(sums[chunk]);
    return from_thread_0(total, shared);
}

}  // namespace weft
