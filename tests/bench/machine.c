/*
 * Four bill machines in C, made by tests/bench/port.py from hypervisor_svc/engine/machine.py: the same
 * statements over the same arrays. It is what the compiled loop is measured against.
 *
 * layout.h is made from the engine's own numbers when this file is compiled. Nothing is timed before this
 * loop and the compiled one agree in every counter, record and outcome.
 */
#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;
/* Columns come off the wire and need not be aligned. */
typedef u16 u16_anywhere __attribute__((aligned(1)));
typedef u32 u32_anywhere __attribute__((aligned(1)));
typedef u64 u64_anywhere __attribute__((aligned(1)));

i64 run_machines(u8 *symbols,
                 u32 *accesses_before,
                 u64 *begins, u64 begins_size,
                 u64 *ends,
                 u64 *accesses,
                 u64 step,
                 u32 (*tables)[ROW_TABLES],
                 u8 (*looks)[ROW_LOOKS],
                 u64 (*states)[ROW_STATES],
                 u64 (*taken)[ROW_TAKEN][ROW_TAKEN_2],
                 u64 (*windows)[ROW_WINDOWS],
                 u64 (*opened)[ROW_OPENED],
                 u64 (*last)[ROW_LAST],
                 u64 *four)
{
    u64 a = four[0];
    u64 b = four[1];
    u64 c = four[2];
    u64 d = four[3];
    for (u64 v = 0; v < begins_size; v++) {
        u64 at = begins[v];
        u64 stop = ends[v];
        if (at >= stop) {
            continue;
        }
        u64 state_a = states[v][a];
        u64 state_b = states[v][b];
        u64 state_c = states[v][c];
        u64 state_d = states[v][d];
        u64 entry_a = last[v][a];
        u64 entry_b = last[v][b];
        u64 entry_c = last[v][c];
        u64 entry_d = last[v][d];
        u64 is_stopped = false;
        while (at < stop) {
            u64 symbol = symbols[at];
            u64 next_a = tables[a][state_a | symbol];
            u64 next_b = tables[b][state_b | symbol];
            u64 next_c = tables[c][state_c | symbol];
            u64 next_d = tables[d][state_d | symbol];
            if ((next_a & next_b & next_c & next_d & K_U_PLAIN) == 0) {
                is_stopped = (next_a == K_U_UNKNOWN) | (next_b == K_U_UNKNOWN);
                is_stopped = is_stopped | (next_c == K_U_UNKNOWN) | (next_d == K_U_UNKNOWN);
                u64 look;
                if (!is_stopped) {
                    look = looks[a][next_a & K_U_NUMBER] | looks[b][next_b & K_U_NUMBER];
                    look |= looks[c][next_c & K_U_NUMBER] | looks[d][next_d & K_U_NUMBER];
                    is_stopped = (look & K_U_LOOPS) != 0;
                }
                if (is_stopped) {
                    break;
                }
                u64 before = accesses[v] + accesses_before[at];
                for (u64 k = 0; k < 4; k++) {
                    u64 m = four[k];
                    u64 entry = k == 0 ? next_a : (k == 1 ? next_b : (k == 2 ? next_c : next_d));
                    look = looks[m][entry & K_U_NUMBER];
                    if ((look & K_U_CLOSES) != 0) {
                        u64 size = before - opened[v][m];
                        if ((look & K_U_CLOSES_AFTER) != 0) {
                            size += 1;
                        }
                        u64 bucket = size;
                        if (size >= K_EXACT) {
                            bucket = K_EXACT - 7;
                            while (size > 0) {
                                size >>= 1;
                                bucket += 1;
                            }
                        }
                        windows[m][bucket] += step;
                    }
                    if ((look & K_U_OPENS) != 0) {
                        opened[v][m] = before;
                    }
                }
            }
            taken[v][a][next_a & K_U_NUMBER] += step;
            taken[v][b][next_b & K_U_NUMBER] += step;
            taken[v][c][next_c & K_U_NUMBER] += step;
            taken[v][d][next_d & K_U_NUMBER] += step;
            state_a = (next_a >> K_U_SHIFT) & K_U_STATE;
            state_b = (next_b >> K_U_SHIFT) & K_U_STATE;
            state_c = (next_c >> K_U_SHIFT) & K_U_STATE;
            state_d = (next_d >> K_U_SHIFT) & K_U_STATE;
            entry_a = next_a;
            entry_b = next_b;
            entry_c = next_c;
            entry_d = next_d;
            at += 1;
        }
        begins[v] = at;
        states[v][a] = state_a;
        states[v][b] = state_b;
        states[v][c] = state_c;
        states[v][d] = state_d;
        last[v][a] = entry_a;
        last[v][b] = entry_b;
        last[v][c] = entry_c;
        last[v][d] = entry_d;
        if (is_stopped) {
            return v;
        }
    }
    return -1ull;
}
