/*
 * The pass that reads symbols in C, made by tests/bench/port.py from hypervisor_svc/engine/symbols.py: the same
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

static inline u64 canonical_dr7(u64 value)
{
    return (value & DR7_WRITABLE) | DR7_FIXED;
}

void read_symbols(const u8 *kinds,
                  const u8 *args,
                  const u8 *modes,
                  const u8 *marks,
                  const u8 *vcpus,
                  const u32_anywhere *selectors,
                  const u64_anywhere *values,
                  u64 start,
                  u64 stop,
                  u64 is_computed,
                  u8 *stories,
                  u64 *story_values,
                  u32 *undefined,
                  u8 *groups,
                  u32 *passed_msrs, u64 passed_msrs_size,
                  u8 *numbers,
                  u32 *words,
                  u16 *reason_numbers,
                  u32 *reasons,
                  i64 *places,
                  u64 (*per_vcpu)[ROW_PER_VCPU],
                  u8 *symbols,
                  u32 *accesses_before,
                  u32 *events,
                  u64 *stretch)
{
    u64 known_words = stretch[KNOWN_WORDS];
    u64 known_reasons = stretch[KNOWN_REASONS];
    u64 current = 0; /* the vCPU whose columns are at hand */
    u64 at = places[0];
    u64 accesses = 0;
    u64 owes = per_vcpu[0][OWES];
    u64 i = start;
    while (i < stop) {
        u64 kind = kinds[i];
        u64 story = stories[i];
        if (kind == K_ADVANCE || story == K_NOT_TAKEN) {
            i += 1;
            continue;
        }
        u64 mark = marks[i];
        u64 mode = modes[i];
        u64 group = groups[kind];
        bool steps = is_computed && (mode & K_TF) != 0;
        if (group != K_DR) { /* what has not retired has no step, whatever it is */
            steps = steps && (mark & K_NOT_RETIRED) == 0;
        }
        u64 word = QUIET_WORD;
        u64 counts = 0;
        u64 arg;
        if (group == K_DR) {
            arg = args[i];
            word = K_W_DR | arg;
            if (((mark & (K_RETIRED | K_NOT_RETIRED)) | mode) != 0) {
                if ((mode & K_CPL) != 0) {
                    word |= K_W_USER;
                }
                if ((mark & K_RETIRED) != 0) {
                    word |= K_W_RETIRED;
                }
                if ((mark & K_NOT_RETIRED) != 0) {
                    word |= K_W_NOT_RETIRED;
                }
            }
            if (kind == K_MOV_TO_DR) {
                word |= K_W_WRITE;
                u64 value = values[i];
                if ((mark & K_UNKNOWN) != 0) {
                    if (story != K_NOTHING || (mark & K_NOT_RETIRED) != 0) {
                        break;
                    }
                    value = story_values[i];
                }
                if ((mode & K_OPERAND_32) != 0) {
                    if ((value >> 32) != 0) {
                        word |= K_W_CUT;
                    }
                    value &= LOW_32;
                }
                if (arg >= 4) {
                    if ((value >> 32) != 0) {
                        word |= K_W_WIDE;
                    }
                    word |= value & K_BIT_11; /* as WORD_DR_BIT_11 */
                    if ((arg & 1) == 0) {
                        word |= (value & K_BIT_16) >> 4; /* as WORD_DR_BIT_16 */
                    } else {
                        if ((value & DR7_ENABLES) != 0) {
                            word |= K_W_ENABLES;
                        }
                        if ((value & DR7_GD) != 0) {
                            word |= K_W_GD;
                        }
                        if (canonical_dr7(value & LOW_32) == DR7_RESET) {
                            word |= K_W_RESET;
                        }
                    }
                }
            }
            if ((mark & K_NOT_RETIRED) == 0) {
                counts = (K_DONE >> story) & 1;
            }
        } else if (group == K_QUIET) {
            if (steps) {
                word = kind;
            }
        } else if (group == K_MATCH) {
            if (story != K_NOTHING || steps) {
                word = kind;
                if (story != K_NOTHING && (story_values[i] & 15) != 0) {
                    word |= DETAIL_HIT << K_DETAIL;
                }
            }
        } else if (group == K_EXITING) {
            word = kind | ((mark >> K_CLASS_OF_MARK) << K_CLASS);
            bool is_io = kind >= K_IN && kind <= K_OUTS;
            if (is_io && story != K_NOTHING && (story_values[i] & 15) != 0) {
                word |= DETAIL_HIT << K_DETAIL;
            }
        } else if (group == K_MSR) {
            u64 selector = selectors[i];
            if (selector == MSR_DEBUGCTL) {
                break;
            }
            bool is_passed = false;
            for (u64 k = 0; k < passed_msrs_size; k++) {
                if (selector == passed_msrs[k]) {
                    is_passed = true;
                }
            }
            if (!is_passed) {
                word = kind | ((mark >> K_CLASS_OF_MARK) << K_CLASS);
                if (kind == K_WRMSR && selector == MSR_TSC_DEADLINE) {
                    word |= 1ull << K_DETAIL;
                } else if (kind == K_WRMSR && selector == MSR_X2APIC_ICR) {
                    word |= 2ull << K_DETAIL;
                }
            } else if (steps) {
                word = kind | (DETAIL_PASSED << K_DETAIL);
            }
        } else if (group == K_CR_WRITE) {
            arg = args[i];
            if ((arg & ~4ull) == 0) {
                word = kind | ((mark >> K_CLASS_OF_MARK) << K_CLASS);
                if (arg == 4) {
                    word |= DETAIL_CR4 << K_DETAIL;
                    if ((mark & K_UNKNOWN) != 0) {
                        word |= DETAIL_CR4_UNKNOWN << K_DETAIL;
                    } else if (((values[i] >> 3) & 1) != 0) {
                        word |= DETAIL_CR4_DE << K_DETAIL;
                    }
                }
            } else if (steps) {
                break;
            }
        } else if (group == K_MMIO) {
            word = kind | ((mark >> K_CLASS_OF_MARK) << K_CLASS);
            if ((selectors[i] >> 12) == LOCAL_APIC_PAGE) {
                word |= 1ull << K_DETAIL;
            }
        } else if (group == K_EXCEPTION) {
            if (selectors[i] == 1 && (mark & K_UNKNOWN) != 0) {
                break;
            }
            word = kind | ((u64)selectors[i] << K_DETAIL);
        } else if (group == K_RECORDED_EXIT) {
            u64 code = selectors[i];
            if (code >= K_CODES) {
                break;
            }
            u64 number = reason_numbers[code];
            if (number == 0) {
                if (known_reasons == K_MOST_REASONS) {
                    break;
                }
                reasons[known_reasons] = (u32)(code);
                known_reasons += 1;
                number = known_reasons;
                reason_numbers[code] = (u16)(number);
            }
            word = kind | ((number - 1) << K_DETAIL) | ((mark >> K_CLASS_OF_MARK) << K_CLASS);
        } else if (group == K_SIGNAL) {
            word = kind | ((mark >> K_CLASS_OF_MARK) << K_CLASS);
        } else if (group == K_SOFTWARE && (!is_computed || kind != K_MOV_SS)) {
            if (is_computed && (kind != K_INTN || steps)) {
                word = kind;
            }
        } else {
            break; /* what a host, a nested guest or MOV SS does */
        }
        if (story != K_NOTHING && undefined[i] != 0) {
            break;
        }
        if (steps) {
            word |= K_W_STEPS;
        }
        u64 symbol = 0;
        if (word != QUIET_WORD) {
            symbol = numbers[word];
            if (symbol == 0) {
                if (known_words == K_MOST_SYMBOLS) {
                    break;
                }
                words[known_words] = (u32)(word);
                symbol = known_words;
                known_words += 1;
                numbers[word] = (u8)(known_words);
            } else {
                symbol -= 1;
            }
        }
        u64 v = vcpus[i];
        if (v != current) {
            per_vcpu[current][SYMBOLS] = at - places[current];
            per_vcpu[current][ACCESSES] = accesses;
            per_vcpu[current][OWES] = owes;
            current = v;
            at = (u64)places[v] + per_vcpu[v][SYMBOLS];
            accesses = per_vcpu[v][ACCESSES];
            owes = per_vcpu[v][OWES];
        }
        /* Always written, and kept by going on: a branch would be guessed wrong too often. */
        symbols[at] = (u8)(symbol);
        accesses_before[at] = (u32)(accesses);
        events[at] = (u32)(i);
        u64 is_symbol = symbol != 0 ? 1 : 0;
        at += is_symbol | owes;
        owes = is_symbol;
        accesses += counts;
        i += 1;
    }
    per_vcpu[current][SYMBOLS] = at - places[current];
    per_vcpu[current][ACCESSES] = accesses;
    per_vcpu[current][OWES] = owes;
    stretch[TAKEN] = i;
    stretch[KNOWN_WORDS] = known_words;
    stretch[KNOWN_REASONS] = known_reasons;
}
