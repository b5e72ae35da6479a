/* Latencies in nanoseconds, counted in buckets whose width grows with the value: 256 to each
 * power of two, so that a percentile is at most 0.4 % off. The largest value is kept exactly. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>
#include <string.h>

#define HIST_BITS 8
#define HIST_SUB (1u << HIST_BITS)
#define HIST_MAX_BITS 40 /* 2^40 ns are 18 minutes */
#define HIST_SIZE ((HIST_MAX_BITS - HIST_BITS + 1) * HIST_SUB)

struct histogram {
    uint64_t counts[HIST_SIZE];
    uint64_t total, max;
};

static inline void hist_reset(struct histogram *h) { memset(h, 0, sizeof *h); }

static inline unsigned hist_index(uint64_t v) {
    if (v < HIST_SUB)
        return (unsigned)v;
    if (v >> HIST_MAX_BITS)
        return HIST_SIZE - 1;
    unsigned shift = 63u - (unsigned)__builtin_clzll(v) - HIST_BITS;
    return (shift + 1) * HIST_SUB + (unsigned)((v >> shift) - HIST_SUB);
}

static inline uint64_t hist_value(unsigned index) {
    if (index < HIST_SUB)
        return index;
    unsigned shift = index / HIST_SUB - 1;
    uint64_t low = (uint64_t)(index % HIST_SUB + HIST_SUB) << shift;
    return low + ((1ull << shift) >> 1);
}

static inline void hist_add(struct histogram *h, uint64_t v) {
    h->counts[hist_index(v)]++;
    h->total++;
    if (v > h->max)
        h->max = v;
}

/* The value below or at which `percent` of all values lie; 0 when there are none. */
static inline uint64_t hist_percentile(const struct histogram *h, double percent) {
    uint64_t want = (uint64_t)((double)h->total * percent / 100.0 + 0.5), seen = 0;
    if (!h->total)
        return 0;
    if (want < 1)
        want = 1;
    for (unsigned i = 0; i < HIST_SIZE; i++) {
        seen += h->counts[i];
        if (seen >= want) {
            uint64_t v = hist_value(i);
            return v > h->max ? h->max : v;
        }
    }
    return h->max;
}

#endif
