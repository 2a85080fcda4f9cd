// From logits to tokens: what crates/engine/src/sampling does on processors, stage by stage and in its order. The same logits, parameters,
// seed and position give the same token, whatever shares the batch.
//
//   logits   [.., stride]    X, row-major, of which `vocabulary` count, at most 524,288; not changed
//   rows     [grid.x]        how a row is sampled, and which one of the logits it is (sampling_logits.cuh); `count` says how many there
//                            are, so that a captured graph stays valid for other parameters and other numbers of rows; a sequence has
//                            one row at most
//   results  [rows]          alternatives [rows, alternatives_stride], best first
//   pending  [rows]          set for rows with more candidates than shared memory holds: those are for `weft_sample_large`
//
// Grid of `weft_sample`: (rows), one block each. Of `weft_sample_large`: (slots), each with four vocabularies of 8 bytes of workspace; it
// takes the pending rows in turn, and ends at once if there are none.
//
// Passes over the logits of a row, each 4 or 2 bytes for each token and 1/8 byte of mask, besides what comes from L2:
//   greedy 1; with temperature only 2 and a chunk of 1024; min_p 2; top_k 2, or from 4 on if more than 2048 tokens reach its bound;
//   top_p 3 to 5. The log-probability of the token takes another one unless top_p or a temperature without filters takes that anyhow,
//   alternatives take 2 more or, among many equal ones, more still. Nothing sorts a vocabulary but `weft_sample_large`: typical_p
//   without other filters, top_k above 2048, and top_p or min_p over a distribution so flat that they keep more than 2048 tokens.
//
// Same as the engine, bit for bit: weights, their sums over the vocabulary, penalties, numbers drawn. Sums over candidates are made side by
// side first; where a decision lies nearer than they can err, one thread adds again in the engine's order. Not the same:
//   - log-probabilities, by `log` of f64: one unit in the last place of f32 where that falls on the edge of its rounding;
//   - typical_p, for two tokens whose distances from the entropy differ by less than about 1e-15;
//   - top_p, if the mass within 3 or 9 nats of the largest is within 1e-12 of 1.00001 times what top_p asks.
#include "sampling_candidates.cuh"

namespace weft {

enum SampleStatus : unsigned { SAMPLED = 0, BAD_LOGITS = 1 };

// 16 bytes. A row whose logits have NaN or +inf, or none above -inf that is allowed, gets BAD_LOGITS, and no token is recorded for it.
struct SampleResult {
    unsigned token;
    unsigned status;
    // Natural logarithm, under the model's own distribution; 0 where it is not wanted.
    float logprob;
    // How many were written.
    unsigned alternatives;
};

struct Alternative {
    unsigned id;
    float logprob;
};

// A sequence whose counts and marks are made anew. 48 bytes.
struct SampleStart {
    // [vocabulary], or null: nothing is penalised.
    unsigned* counts;
    // [ceil(vocabulary / 32)]
    unsigned* marked;
    // Those of the prompt, then those of the output.
    const unsigned* tokens;
    const LogitBias* biases;
    unsigned prompt_tokens;
    unsigned all_tokens;
    unsigned bias_count;
    unsigned padding;
};

// Visits the keys of a row: thread after thread takes four logits. `key(id, logit)` makes them, of changed logits or the model's own.
template <bool CHANGED, typename X, typename MakeKey>
struct EachKey {
    const Logits<X>& logits;
    const SampleRow& row;
    MakeKey key;

    template <typename Use>
    __device__ __forceinline__ void operator()(const Use& use) const {
        for (int id = static_cast<int>(threadIdx.x) * FOUR; id < logits.count; id += SAMPLE_THREADS * FOUR) {
            float values[FOUR];
            if (CHANGED) {
                load_changed(logits, row, id, values);
            } else {
                logits.load(id, values);
            }
#pragma unroll
            for (int i = 0; i < FOUR; ++i)
                if (id + i < logits.count) use(key(id + i, values[i]));
        }
    }
};

template <bool CHANGED, typename X, typename MakeKey>
__device__ __forceinline__ EachKey<CHANGED, X, MakeKey> each_key(const Logits<X>& logits, const SampleRow& row, MakeKey key) {
    return {logits, row, key};
}

// Candidates whose logit is at least `bound`, most probable first. The most that are asked for: `most`, 0 for all. Returns how many, or
// more than the capacity if there is no room. All threads call it.
template <typename X>
__device__ inline unsigned collect(const Logits<X>& logits, const SampleRow& row, float max, float bound, unsigned most,
                                   Candidates& candidates, SampleShared& shared) {
    const float inverse_temperature = row.inverse_temperature;
    const auto visit = each_key<true>(logits, row, [=](int id, float logit) {
        if (!(logit >= bound)) return NO_KEY;
        const float weight = weight_of(logit, max, inverse_temperature);
        return weight > 0.0f ? key_of(__float_as_uint(weight), id) : NO_KEY;
    });
    unsigned count = gather(visit, NO_KEY - 1, candidates, shared);
    if (count > candidates.capacity && most > 0 && most <= candidates.capacity) {
        count = gather(visit, select(visit, most, candidates.capacity, shared), candidates, shared);
    }
    if (count > candidates.capacity) return count;
    sort<false>(candidates, count, shared);
    return most > 0 && most < count ? most : count;
}

// What is cut from candidates, and whether one is drawn from the rest.
struct Choice {
    // The smallest prefix with this share of the mass is kept; 1: all.
    float share;
    // Weights below are cut; 0: none.
    float min_p;
    // The smallest weight there is.
    float smallest;
    // Mass of which `share` is taken; below 0: that of the candidates.
    double total;
    // Mass of all tokens, of which the candidates are some: `share` is of the sum of both parts. Below 0: no others count.
    double of_all;
    // In [0, 1), or below 0: none is drawn.
    double draw;
};

// Returns how many candidates are kept, and through `chosen` the one that is drawn. All threads call it.
__device__ inline unsigned keep_and_draw(const Candidates& candidates, unsigned count, const Choice& choice, unsigned& chosen,
                                         SampleShared& shared) {
    double* const sums = candidates.sums();
    const Key* const keys = candidates.keys;
    for (bool in_order = false;; in_order = true) {
        for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS) sums[i] = static_cast<double>(weight_in(keys[i]));
        add_up(sums, count, 0.0, in_order, shared);
        double total = sums[count - 1];
        double margin = in_order || adds_exactly(choice.smallest, total) ? 0.0 : margin_of(count, total);
        if (choice.total >= 0.0) total = choice.total;
        if (choice.of_all >= 0.0) {
            const double rest = choice.of_all - total;
            // The rest is rounded to f32: an error below the margin can become one step of that.
            const double step = static_cast<double>(static_cast<float>(rest + margin)) - static_cast<double>(static_cast<float>(rest - margin));
            if (rest > 0.0) total += static_cast<double>(static_cast<float>(rest));
            margin += step;
        }
        bool near = false;
        unsigned kept = count;
        if (choice.share < 1.0f) {
            const double target = static_cast<double>(choice.share) * total;
            const unsigned found = first_of(count, [=](unsigned i) { return sums[i] >= target; }, shared);
            near = is_near(sums, count, found, target, margin);
            kept = found < count ? found + 1 : count;
        }
        if (choice.min_p > 0.0f) {
            const float min_p = choice.min_p;
            kept = first_of(kept, [=](unsigned i) { return weight_in(keys[i]) < min_p; }, shared);
            if (kept == 0) kept = 1;
        }
        if (choice.draw >= 0.0) {
            const double target = choice.draw * sums[kept - 1];
            const unsigned found = first_of(kept, [=](unsigned i) { return sums[i] > target; }, shared);
            near = near || is_near(sums, kept, found, target, margin);
            chosen = id_of(keys[found < kept ? found : kept - 1]);
        }
        __syncthreads();
        if (!near || margin == 0.0) return kept;
    }
}

// Orders candidates by how near their surprise is to the entropy (locally typical sampling, arXiv 2202.00666); returns their mass. One
// thread adds, in order: distances are compared, and those depend on the last place. All threads call it.
__device__ inline double rank_by_typicality(Candidates& candidates, unsigned count, SampleShared& shared) {
    double sum = 0.0;
    if (threadIdx.x == 0)
        for (unsigned i = 0; i < count; ++i) sum += static_cast<double>(weight_in(candidates.keys[i]));
    const double total = from_thread_0(sum, shared);
    double* const terms = candidates.sums();
    for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
        const double probability = static_cast<double>(weight_in(candidates.keys[i])) / total;
        terms[i] = __dmul_rn(probability, -log(probability));
    }
    __syncthreads();
    sum = 0.0;
    if (threadIdx.x == 0)
        for (unsigned i = 0; i < count; ++i) sum += terms[i];
    const double entropy = from_thread_0(sum, shared);
    for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
        const double surprise = -log(static_cast<double>(weight_in(candidates.keys[i])) / total);
        // Not below zero: as integers, its bits have the same order.
        terms[i] = fabs(surprise - entropy);
    }
    sort<true>(candidates, count, shared);
    return total;
}

// A logit that at least top_k tokens reach: the top_k-th largest of the maxima of blocks. -inf if there are fewer.
__device__ inline float bound_of(const float* maxima, int blocks, unsigned top_k, SampleShared& shared) {
    const auto visit = [=](const auto& use) {
        for (int block = threadIdx.x; block < blocks; block += SAMPLE_THREADS) use(key_of(ordered_bits(maxima[block]), 0));
    };
    return from_ordered_bits(~static_cast<unsigned>(select(visit, top_k, 0, shared) >> 32));
}

// Writes the most probable tokens of the model itself and returns how many. All threads call it.
template <typename X>
__device__ inline unsigned report(const Logits<X>& logits, const SampleRow& row, unsigned most, double log_sum, Candidates& candidates,
                                  Alternative* alternatives, SampleShared& shared) {
    if (most > static_cast<unsigned>(logits.count)) most = static_cast<unsigned>(logits.count);
    const auto visit = each_key<false>(logits, row, [](int id, float logit) { return key_of(ordered_bits(logit), id); });
    const Key bound = select(visit, most, candidates.capacity, shared);
    const unsigned count = gather(visit, bound, candidates, shared);
    sort<false>(candidates, count, shared);
    for (unsigned i = threadIdx.x; i < most; i += SAMPLE_THREADS) {
        const Key key = candidates.keys[i];
        const float logit = from_ordered_bits(~static_cast<unsigned>(key >> 32));
        alternatives[i] = {id_of(key), logprob_of(logit, log_sum)};
    }
    __syncthreads();
    return most;
}

// Draws from all tokens in order of id: the chunk by the sums there are, then the token within it. All threads call it.
template <typename X>
__device__ inline unsigned draw_from_all(const Logits<X>& logits, const SampleRow& row, const Peaks& peaks, const float* sums,
                                         double* inside, SampleShared& shared) {
    const int chunks = (logits.count + CHUNK - 1) / CHUNK;
    const double total = sum_of(sums, chunks, shared);
    const double target = uniform_at(row.seed, row.position) * total;
    double before = 0.0, start = 0.0;
    int chosen = 0;
    if (threadIdx.x == 0) {
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const double mass = static_cast<double>(sums[chunk]);
            if (mass == 0.0) continue;
            chosen = chunk;
            start = before;
            if (before + mass > target) break;
            before += mass;
        }
    }
    start = from_thread_0(start, shared);
    const int begin = static_cast<int>(from_thread_0(static_cast<double>(chosen), shared)) * CHUNK;
    const int length = logits.count - begin < CHUNK ? logits.count - begin : CHUNK;
    const double margin = margin_of(static_cast<unsigned>(length), total);
    for (bool in_order = false;; in_order = true) {
        for (int i = static_cast<int>(threadIdx.x) * FOUR; i < length; i += SAMPLE_THREADS * FOUR) {
            float values[FOUR];
            load_changed(logits, row, begin + i, values);
            for (int j = 0; j < FOUR && i + j < length; ++j) {
                inside[i + j] = static_cast<double>(weight_of(values[j], peaks.max, row.inverse_temperature));
            }
        }
        add_up(inside, static_cast<unsigned>(length), start, in_order, shared);
        const unsigned count = static_cast<unsigned>(length);
        const unsigned found = first_of(count, [=](unsigned i) { return inside[i] > target; }, shared);
        const bool near = !in_order && is_near(inside, count, found, target, margin);
        __syncthreads();
        if (near) continue;
        if (found < count) return static_cast<unsigned>(begin) + found;
        break;
    }
    // Rounding left the target unreached: the last token of the chunk that has any weight.
    unsigned last = 0;
    if (threadIdx.x == 0) {
        for (int id = begin; id < begin + length; id += FOUR) {
            float values[FOUR];
            load_changed(logits, row, id, values);
            for (int j = 0; j < FOUR && id + j < begin + length; ++j)
                if (weight_of(values[j], peaks.max, row.inverse_temperature) > 0.0f) last = static_cast<unsigned>(id + j);
        }
    }
    return static_cast<unsigned>(from_thread_0(static_cast<double>(last), shared));
}

// Filters and draws: top_k, top_p, min_p, typical_p, each over what the one before kept. False: the candidates have no room here.
// `bound` is for top_k, `of_all` the mass of all tokens, for top_p without top_k. All threads call it.
template <typename X>
__device__ inline bool draw_filtered(const Logits<X>& logits, const SampleRow& row, float max, float bound, double of_all,
                                     Candidates& candidates, unsigned& token, SampleShared& shared) {
    const float lowest = __uint_as_float(0xff800000u);
    const bool covers = row.top_k == 0 && row.top_p < 1.0f;
    Choice choice = {row.top_p, row.min_p, 0.0f, -1.0, -1.0, -1.0};
    unsigned count = 0;
    // Without top_k, top_p takes a part of the distribution that surely holds its share: within 3 nats of the largest, 9, or all.
    for (int attempt = 0;; ++attempt) {
        float lower = lowest;
        if (row.top_k > 0) {
            lower = bound;
        } else if (covers) {
            if (attempt < 2) lower = __fsub_rn(max, __fdiv_rn(attempt == 0 ? 3.0f : 9.0f, row.inverse_temperature));
        } else if (row.min_p > 0.0f) {
            lower = __fadd_rn(max, row.min_p_slack);
        }
        count = collect(logits, row, max, lower, row.top_k, candidates, shared);
        if (count > candidates.capacity) return false;
        if (!covers || attempt == 2) break;
        double* const sums = candidates.sums();
        for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS) sums[i] = static_cast<double>(weight_in(candidates.keys[i]));
        add_up(sums, count, 0.0, false, shared);
        const double mass = sums[count - 1];
        __syncthreads();
        if (mass >= static_cast<double>(row.top_p) * of_all * (1.0 + 1e-5)) {
            choice.of_all = of_all;
            break;
        }
    }
    choice.smallest = weight_in(candidates.keys[count - 1]);
    for (bool is_last = row.typical_p >= 1.0f;; is_last = true) {
        if (is_last) choice.draw = uniform_at(row.seed, row.position);
        count = keep_and_draw(candidates, count, choice, token, shared);
        if (is_last) return true;
        const float smallest = weight_in(candidates.keys[count - 1]);
        __syncthreads();
        const double total = rank_by_typicality(candidates, count, shared);
        choice = {row.typical_p, 0.0f, smallest, total, -1.0, -1.0};
    }
}

// Samples a row. False: it has more candidates than there is room for, and nothing was written but alternatives. `LARGE`: there is
// always room, and alternatives are written already. All threads of a block call it.
template <bool LARGE, typename X>
__device__ inline bool sample(const X* from, int vocabulary, const SampleRow& row, SampleResult* result, Alternative* alternatives,
                              unsigned alternatives_stride, Candidates candidates, SampleShared& shared) {
    const Logits<X> logits(from, vocabulary);
    const bool is_greedy = row.inverse_temperature == 0.0f;
    const int blocks = (vocabulary + BLOCK - 1) / BLOCK, chunks = (vocabulary + CHUNK - 1) / CHUNK;
    const bool has_bound = !is_greedy && row.top_k > 0 && row.top_k <= static_cast<unsigned>(blocks);
    float* const maxima = reinterpret_cast<float*>(shared.pool);
    const Peaks peaks = find_peaks(logits, row, has_bound ? maxima : nullptr, shared);
    if (!peaks.valid) {
        if (threadIdx.x == 0) *result = {0xffffffffu, BAD_LOGITS, 0.0f, 0};
        return true;
    }
    const float bound = has_bound ? bound_of(maxima, blocks, row.top_k, shared) : __uint_as_float(0xff800000u);

    const bool is_filtered = row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f || row.typical_p < 1.0f;
    const bool wants_sums = !is_greedy && (!is_filtered || (row.top_k == 0 && row.top_p < 1.0f));
    const bool are_same = row.inverse_temperature == 1.0f && !changes_logits(row);
    float* const model_sums = row.wants_logprob ? shared.model_sums : nullptr;
    float* const sums = wants_sums && are_same && row.wants_logprob ? shared.model_sums : shared.sums;
    if (row.wants_logprob || wants_sums) {
        sum_chunks(logits, row, peaks, model_sums, wants_sums && sums != model_sums ? sums : nullptr);
    }
    double log_sum = 0.0;
    if (row.wants_logprob) log_sum = static_cast<double>(peaks.model_max) + log(sum_of(model_sums, chunks, shared));
    unsigned reported = row.alternatives < alternatives_stride ? row.alternatives : alternatives_stride;
    if (reported > static_cast<unsigned>(vocabulary)) reported = static_cast<unsigned>(vocabulary);
    if (!LARGE && reported > 0) report(logits, row, reported, log_sum, candidates, alternatives, shared);

    unsigned token = static_cast<unsigned>(peaks.id);
    if (!is_greedy && !is_filtered) {
        token = draw_from_all(logits, row, peaks, sums, candidates.sums(), shared);
    } else if (!is_greedy) {
        const double of_all = wants_sums ? sum_of(sums, chunks, shared) : -1.0;
        if (!draw_filtered(logits, row, peaks.max, bound, of_all, candidates, token, shared)) return false;
    }
    if (threadIdx.x == 0) {
        const float logprob = row.wants_logprob ? logprob_of(to_float(from[token]), log_sum) : 0.0f;
        *result = {token, SAMPLED, logprob, reported};
        if (row.counts != nullptr) {
            const unsigned count = row.counts[token];
            row.counts[token] = count == 0 ? 2 : count + 1;
            row.marked[token / 32] |= 1u << (token % 32);
        }
    }
    return true;
}

template <typename X>
__device__ __forceinline__ void sample_rows(const X* logits, int vocabulary, int stride, const SampleRow* rows, const unsigned* count,
                                            SampleResult* results, Alternative* alternatives, unsigned alternatives_stride,
                                            unsigned* pending, SampleShared& shared) {
    const unsigned at = blockIdx.x;
    if (at >= *count) return;
    const Candidates candidates = {shared.pool, shared.pool + CANDIDATES, nullptr, nullptr, CANDIDATES};
    const SampleRow row = rows[at];
    const bool done = sample<false>(logits + static_cast<size_t>(row.logits_row) * stride, vocabulary, row, results + at,
                                    alternatives + static_cast<size_t>(at) * alternatives_stride, alternatives_stride, candidates, shared);
    if (threadIdx.x == 0) pending[at] = done ? 0 : 1;
}

template <typename X>
__device__ __forceinline__ void sample_large_rows(const X* logits, int vocabulary, int stride, const SampleRow* rows,
                                                  const unsigned* count, SampleResult* results, unsigned alternatives_stride,
                                                  const unsigned* pending, Key* workspace, SampleShared& shared) {
    const unsigned all = *count;
    Key* const slot = workspace + static_cast<size_t>(blockIdx.x) * 4 * vocabulary;
    const Candidates candidates = {slot, slot + vocabulary, slot + 2 * static_cast<size_t>(vocabulary),
                                   slot + 3 * static_cast<size_t>(vocabulary), static_cast<unsigned>(vocabulary)};
    unsigned turn = 0;
    for (unsigned at = 0; at < all; ++at) {
        if (pending[at] == 0 || turn++ % gridDim.x != blockIdx.x) continue;
        const SampleRow row = rows[at];
        sample<true>(logits + static_cast<size_t>(row.logits_row) * stride, vocabulary, row, results + at, static_cast<Alternative*>(nullptr),
                     alternatives_stride, candidates, shared);
        __syncthreads();
    }
}

// Clears the counts and marks of a sequence and makes them from its tokens and biases; tokens beyond the vocabulary do not count.
__device__ __forceinline__ void begin_sequence(const SampleStart& start, unsigned vocabulary) {
    for (unsigned id = threadIdx.x; start.counts != nullptr && id < vocabulary; id += SAMPLE_THREADS) start.counts[id] = 0;
    for (unsigned word = threadIdx.x; word < (vocabulary + 31) / 32; word += SAMPLE_THREADS) start.marked[word] = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < start.bias_count; i += SAMPLE_THREADS) {
        const unsigned id = start.biases[i].id;
        if (id < vocabulary) atomicOr(&start.marked[id / 32], 1u << (id % 32));
    }
    if (start.counts == nullptr) return;
    for (unsigned i = threadIdx.x; i < start.all_tokens; i += SAMPLE_THREADS) {
        const unsigned id = start.tokens[i];
        if (id >= vocabulary) continue;
        atomicMax(&start.counts[id], 1u);
        atomicOr(&start.marked[id / 32], 1u << (id % 32));
    }
    __syncthreads();
    for (unsigned i = start.prompt_tokens + threadIdx.x; i < start.all_tokens; i += SAMPLE_THREADS) {
        if (start.tokens[i] < vocabulary) atomicAdd(&start.counts[start.tokens[i]], 1u);
    }
}

}  // namespace weft

// Before a sequence is sampled first, or again elsewhere. Grid: (sequences).
extern "C" __global__ void __launch_bounds__(weft::SAMPLE_THREADS)
    weft_sample_begin(const weft::SampleStart* starts, const unsigned* count, int vocabulary) {
    if (blockIdx.x < *count) weft::begin_sequence(starts[blockIdx.x], static_cast<unsigned>(vocabulary));
}

#define WEFT_SAMPLE(suffix, X)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(weft::SAMPLE_THREADS, 1) weft_sample_##suffix(                                       \
        const X* logits, int vocabulary, int stride, const weft::SampleRow* rows, const unsigned* count, weft::SampleResult* results, \
        weft::Alternative* alternatives, unsigned alternatives_stride, unsigned* pending) {                                           \
        __shared__ weft::SampleShared shared;                                                                                         \
        weft::sample_rows<X>(logits, vocabulary, stride, rows, count, results, alternatives, alternatives_stride, pending, shared);   \
    }                                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(weft::SAMPLE_THREADS, 1) weft_sample_large_##suffix(                                 \
        const X* logits, int vocabulary, int stride, const weft::SampleRow* rows, const unsigned* count, weft::SampleResult* results, \
        unsigned alternatives_stride, const unsigned* pending, unsigned long long* workspace) {                                       \
        __shared__ weft::SampleShared shared;                                                                                         \
        weft::sample_large_rows<X>(logits, vocabulary, stride, rows, count, results, alternatives_stride, pending, workspace, shared);\
    }

WEFT_SAMPLE(f32, float)
WEFT_SAMPLE(bf16, __nv_bfloat16)
WEFT_SAMPLE(f16, __half)
