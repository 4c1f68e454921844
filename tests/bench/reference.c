/*
 * The reference in C, made by tests/bench/port.py from hypervisor_svc/arch/reference.py: the same
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

static inline u64 mixed(u64 event, u64 vcpu, u64 story, u64 value)
{
    u64 x = (event * 0x9e3779b97f4a7c15ull) + (vcpu << 8) + story;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ value ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static inline u64 first_fault(u64 is_undefined, u64 is_unprivileged, u64 is_detected)
{
    if (is_undefined) {
        return FAULT_UD;
    }
    if (is_unprivileged) {
        return FAULT_GP;
    }
    if (is_detected) {
        return FAULT_GD;
    }
    return FAULT_NONE;
}

static inline u64 is_exception(u64 story)
{
    return (story >= K_FIRST_EXCEPTION && story <= K_LAST_EXCEPTION) || story == K_BP;
}

static inline u64 canonical_dr6(u64 value, u64 writable)
{
    return (value & writable) | (DR6_RESET & ~writable);
}

static inline u64 slot_matches(u64 access, u64 address, u64 length, u64 slot_address, u64 condition)
{
    u64 kind = condition & 3;
    u64 size_code = condition >> 2;
    if (access == ACCESS_FETCH) {
        return kind == 0 && size_code == 0 && slot_address == address;
    }
    if ((kind == 2) != (access == ACCESS_IO)) {
        return false;
    }
    if (kind == 0 || (kind == 1 && access == ACCESS_READ)) {
        return false;
    }
    u64 size = 1ull << size_code;
    if (size_code == 2) {
        size = 8;
    } else if (size_code == 3) {
        size = 4;
    }
    u64 base = slot_address & ~(size - 1);
    /* Distances modulo 2^64, so that ranges may wrap. */
    return (base - address) < length || (address - base) < size;
}

static inline u64 matching_slots(u64 access, u64 address, u64 length, u64 db0, u64 db1, u64 db2, u64 db3, u64 dr7)
{
    u64 hits = 0;
    if (slot_matches(access, address, length, db0, (dr7 >> 16) & 15)) {
        hits |= 16 | ((dr7 & 3) != 0 ? 1 : 0);
    }
    if (slot_matches(access, address, length, db1, (dr7 >> 20) & 15)) {
        hits |= 32 | ((dr7 & 12) != 0 ? 2 : 0);
    }
    if (slot_matches(access, address, length, db2, (dr7 >> 24) & 15)) {
        hits |= 64 | ((dr7 & 48) != 0 ? 4 : 0);
    }
    if (slot_matches(access, address, length, db3, (dr7 >> 28) & 15)) {
        hits |= 128 | ((dr7 & 192) != 0 ? 8 : 0);
    }
    return hits;
}

static inline u64 canonical_dr7(u64 value)
{
    return (value & DR7_WRITABLE) | DR7_FIXED;
}

static inline u64 dr6_after_db(u64 dr6, u64 cause)
{
    return (dr6 & ~DR6_TRAP_BITS) | DR6_RTM | cause;
}

static inline u64 registers_digest(u64 db0, u64 db1, u64 db2, u64 db3, u64 dr6, u64 dr7)
{
    u64 odd = 0x9e3779b97f4a7c15ull;
    u64 total = db0 + (db1 * 3) + (db2 * 5) + (db3 * 7) + (dr6 * K_NINE) + (dr7 * K_ELEVEN);
    return total * odd;
}

static inline u64 kept_control(u64 selector)
{
    return (selector & K_ENABLE) != 0 ? (selector & ~K_INJECTS) : 0;
}

void run_reference(const u8 *kinds, u64 kinds_size,
                   const u8 *args,
                   const u8 *modes,
                   const u8 *marks,
                   const u8 *vcpus,
                   const u32_anywhere *gap_cycles,
                   const u32_anywhere *selectors,
                   const u64_anywhere *values,
                   u64 first_event,
                   u64 is_computed,
                   u64 is_leading,
                   u64 is_svm,
                   u64 writable_dr6,
                   u8 *leading_stories,
                   u64 (*state)[ROW_STATE],
                   u64 *counts,
                   u8 *stories,
                   u64 *story_values,
                   u32 *undefined)
{
    for (u64 i = 0; i < kinds_size; i++) {
        u64 kind = kinds[i];
        u64 v = vcpus[i];
        undefined[i] = 0;
        if (kind == K_ADVANCE) {
            state[v][CYCLES] += gap_cycles[i];
            stories[i] = NOTHING;
            story_values[i] = 0;
            continue;
        }
        counts[EVENTS] += 1;
        u64 mark = marks[i];
        u64 arg = args[i];
        u64 mode = modes[i];
        u64 value = values[i];
        bool is_ordinary = state[v][EXTRA] == 0 && (mode & K_TF) == 0;
        u64 seen, slot, story;
        if (kind <= K_MOV_FROM_DR && is_ordinary && ((mark & ~K_EXPECTED) | mode) == 0) {
            /* Most streams are made of accesses about which there is nothing special: a short way for them.
                    */
            slot = arg < 4 ? arg : (arg - 2);
            bool is_done = (state[v][DR7] & DR7_GD) == 0 && (arg & ~1ull) != 4;
            seen = value;
            story = NOTHING;
            if (kind == K_MOV_TO_DR) {
                is_done = is_done && (arg < 4 || (value >> 32) == 0);
                if (is_done) {
                    if (arg == 6) {
                        seen = canonical_dr6(value, writable_dr6);
                        state[v][UNDEFINED] = 0;
                        state[v][DR6_UNAIDED] = seen;
                    } else if (arg == 7) {
                        seen = canonical_dr7(value);
                    }
                    state[v][slot] = seen;
                }
            } else {
                story = READ;
                seen = state[v][slot];
                bool is_expected = (mark & K_EXPECTED) != 0;
                u64 unaided = seen;
                if (arg == 6) {
                    is_done = is_done && state[v][UNDEFINED] == 0;
                    unaided = state[v][DR6_UNAIDED];
                }
                is_done = is_done && (!is_expected || seen == value);
                if (is_done) {
                    counts[DIGEST] += mixed(first_event + i, v, story, seen);
                    if (is_expected) {
                        counts[RECORDED_READS] += 1;
                        if (arg == 6) {
                            counts[DR6_READS] += 1;
                        }
                        if (unaided == value) {
                            counts[AGREEMENTS_UNAIDED] += 1;
                        }
                    }
                }
            }
            if (is_done) {
                state[v][CYCLES] += gap_cycles[i];
                state[v][FAULTED] = 0;
                stories[i] = story;
                story_values[i] = seen;
                continue;
            }
        }
        u64 conditional = mark & (K_IF_FAULT | K_IF_OK);
        if (conditional != 0) {
            bool faulted = state[v][FAULTED] != 0;
            u64 taken = ((mark & K_IF_FAULT) != 0) == faulted;
            if (!is_leading) {
                bool lead_taken = leading_stories[i] != NOT_TAKEN;
                if (lead_taken != taken) {
                    counts[CONFLICTS] += 1;
                    if (counts[CONFLICT_EVENT] == 0) {
                        counts[CONFLICT_EVENT] = first_event + i + 1;
                    }
                }
                taken = lead_taken;
            }
            if (!taken) {
                stories[i] = NOT_TAKEN;
                story_values[i] = 0;
                continue;
            }
        }
        state[v][CYCLES] += gap_cycles[i];
        bool is_plain = ((K_PLAIN_KINDS >> kind) & 1) != 0;
        if (((K_MATCHING_KINDS >> kind) & 1) != 0) {
            is_plain = (state[v][DR7] & DR7_ENABLES) == 0;
        } else if (((K_MSR_KINDS >> kind) & 1) != 0) {
            is_plain = selectors[i] != MSR_DEBUGCTL;
        }
        if (is_plain && is_ordinary) {
            if (conditional == 0 && kind < K_FIRST_ASYNCHRONOUS) {
                state[v][FAULTED] = 0;
            }
            stories[i] = NOTHING;
            story_values[i] = 0;
            continue;
        }
        story = NOTHING;
        seen = 0;
        u64 fault = FAULT_NONE;
        u64 hits = 0; /* enabled slots that match in bits 0-3, all that match in bits 4-7 */
        u64 cause = 0; /* of a debug exception, beside the hits */
        bool is_kept = false; /* the exception leaves DR6 as it is */
        bool is_guests = kind < K_FIRST_ASYNCHRONOUS;
        bool is_io = kind >= K_IN && kind <= K_OUTS;
        bool is_fetch = kind == K_FETCH && arg != END_OF_FETCH;
        u64 control = 0;
        bool takes_db = false;
        bool is_nested = false;
        u64 nested_control = 0;
        u64 shadow = SHADOW_NONE;
        bool is_overdue = false;
        bool is_special = state[v][EXTRA] != 0 || (mode & K_TF) != 0;
        is_special = is_special || ((SPECIAL_KINDS >> kind) & 1) != 0;
        if (is_special) {
            control = state[v][CONTROL];
            takes_db = (control & TAKES_DB) != 0;
            is_nested = state[v][NESTED] != 0;
            nested_control = is_nested ? state[v][NESTED_CONTROL] : 0;
            shadow = state[v][SHADOW];
            is_overdue = shadow == SHADOW_OVERDUE || (shadow == SHADOW_FETCHED && is_fetch);
            bool is_sure = (mark & (K_RETIRED | K_NOT_RETIRED)) != 0;
            is_overdue = is_overdue && is_guests && !is_sure && state[v][HELD] != 0;
        }
        if (is_overdue) {
            hits = state[v][HELD];
            state[v][HELD] = 0;
            state[v][SHADOW] = SHADOW_NONE;
            story = DB_FAULT;
        } else if ((kind == K_MOV_TO_DR || kind == K_MOV_FROM_DR) && (mark & K_NOT_RETIRED) == 0) {
            bool is_alias = arg == 4 || arg == 5;
            u64 register_ = is_alias ? (arg + 2) : arg;
            bool is_write = kind == K_MOV_TO_DR;
            if ((mode & K_OPERAND_32) != 0) {
                value &= LOW_32;
            }
            bool is_intercepted = (nested_control & WANTS_MOV_DR) != 0;
            u64 dr7 = (control & USES_HW) != 0 ? state[v][DEBUGGER_DR7] : state[v][DR7];
            fault = first_fault(is_alias && state[v][HAS_DE] != 0, (mode & K_CPL) != 0, (dr7 & DR7_GD) != 0);
            bool is_known = (mark & K_UNKNOWN) == 0;
            bool is_too_wide = is_write && is_known && register_ >= 6 && (value >> 32) != 0;
            if (is_intercepted && (!is_svm || fault == FAULT_NONE)) {
                story = VMEXIT;
                fault = FAULT_NONE;
            } else if (fault == FAULT_NONE && is_too_wide) {
                fault = FAULT_GP;
            }
            if ((fault != FAULT_NONE || story == VMEXIT) && (mark & K_RETIRED) != 0) {
                counts[CONTRADICTIONS] += 1;
                fault = FAULT_NONE;
                story = NOTHING;
            }
            if (story == VMEXIT) {
            } else if (fault == FAULT_GD) {
                cause = DR6_BD;
                /* A debugger that takes it leaves the access undone, and the guest sees nothing. */
                bool is_taken = (control & USES_HW) != 0 || (takes_db && is_svm);
                story = is_taken ? NOTHING : DB_FAULT;
            } else if (fault == FAULT_UD) {
                story = UD;
            } else if (fault == FAULT_GP) {
                story = GP;
            } else if (is_write) {
                slot = register_ < 4 ? register_ : (register_ - 2);
                if ((mark & K_UNKNOWN) != 0) {
                    value = state[v][slot]; /* an assumption: it writes what is there */
                }
                if (register_ == 6) {
                    value = canonical_dr6(value, writable_dr6);
                    state[v][UNDEFINED] = 0;
                    state[v][DR6_UNAIDED] = value;
                } else if (register_ == 7) {
                    value = canonical_dr7(value);
                }
                state[v][slot] = value;
                seen = value;
            } else {
                slot = register_ < 4 ? register_ : (register_ - 2);
                seen = state[v][slot];
                u64 mask = ~0ull;
                if ((mode & K_OPERAND_32) != 0) {
                    seen &= LOW_32;
                    mask = LOW_32;
                }
                if (register_ == 6) {
                    undefined[i] = (u32)(state[v][UNDEFINED]);
                    mask &= ~state[v][UNDEFINED];
                }
                story = READ;
                if ((mark & K_EXPECTED) != 0) {
                    counts[RECORDED_READS] += 1;
                    if (register_ == 6) {
                        counts[DR6_READS] += 1;
                        if (state[v][DR6_UNAIDED] == value) {
                            counts[AGREEMENTS_UNAIDED] += 1;
                        }
                    } else if (seen == value) {
                        counts[AGREEMENTS_UNAIDED] += 1;
                    }
                    if (((seen ^ value) & mask) != 0) {
                        counts[DISAGREEMENTS] += 1;
                        if (counts[FIRST_EVENT] == 0) {
                            counts[FIRST_EVENT] = first_event + i + 1;
                            counts[FIRST_VCPU] = v;
                            counts[FIRST_REGISTER] = register_;
                            counts[FIRST_RECORDED] = value;
                            counts[FIRST_READ] = seen;
                        }
                    }
                }
            }
        } else if (kind == K_FETCH || kind == K_READ || kind == K_WRITE || is_io) {
            /* A step shows disabled breakpoints that match as well, in bits that are undefined. */
            bool may_show = (state[v][DR7] & DR7_ENABLES) != 0 || (mode & K_TF) != 0;
            bool is_matching = is_computed && !takes_db && may_show;
            u64 address = is_io ? selectors[i] : value;
            u64 access = ACCESS_IO;
            bool is_blocked = is_io && (state[v][HAS_DE] == 0 || arg == 0);
            if (kind == K_FETCH) {
                access = ACCESS_FETCH;
                /* On VMX the shadow of MOV SS covers a code breakpoint on the next instruction. */
                bool is_shaded = shadow == SHADOW_CAST || (mode & K_INTERRUPT_SHADOW) != 0;
                is_blocked = !is_fetch || (mode & K_RF) != 0 || (is_shaded && !is_svm);
            } else if (kind == K_READ) {
                access = ACCESS_READ;
            } else if (kind == K_WRITE) {
                access = ACCESS_WRITE;
            }
            if (is_matching && !is_blocked) {
                hits = matching_slots(access, address, arg, state[v][0], state[v][1], state[v][2],
                        state[v][3], state[v][DR7]);
                if ((hits & 15) != 0) {
                    story = kind == K_FETCH ? DB_FAULT : DB_TRAP;
                }
            }
        } else if (kind == K_MOV_SS) {
            if (is_computed && !takes_db && arg != 0 && (state[v][DR7] & DR7_ENABLES) != 0) {
                hits = matching_slots(ACCESS_READ, value, arg, state[v][0], state[v][1], state[v][2],
                        state[v][3], state[v][DR7]);
            }
            if (is_computed && shadow == SHADOW_NONE) {
                state[v][HELD] = (hits & 15) != 0 ? hits : 0;
                state[v][SHADOW] = SHADOW_CAST;
                hits = 0;
            } else if ((hits & 15) != 0) {
                story = DB_TRAP;
            }
        } else if (kind == K_INT1) {
            if (is_computed && (!takes_db || is_svm)) {
                story = DB_TRAP;
                is_kept = true;
            }
        } else if (kind == K_INT3) {
            if (is_computed && (control & USES_SW) == 0) {
                story = BP;
            }
        } else if (kind == K_EXCEPTION) {
            u64 vector = selectors[i];
            if (vector == 1) {
                story = DB_FAULT;
                if ((mark & K_UNKNOWN) != 0) {
                    cause = state[v][DR6] & DR6_CAUSES;
                    state[v][UNDEFINED] |= DR6_CAUSES;
                } else {
                    cause = value & DR6_CAUSES;
                    state[v][UNDEFINED] &= ~15ull;
                }
            } else if (vector == 6) {
                story = UD;
            } else if (vector == K_THIRTEEN) {
                story = GP;
            }
        } else if (kind == K_MOV_TO_CR) {
            if (arg == 4 && (mark & K_UNKNOWN) == 0) {
                state[v][HAS_DE] = (value >> 3) & 1;
            }
        } else if (kind == K_RDMSR) {
            if (selectors[i] == MSR_DEBUGCTL) {
                story = READ;
                undefined[i] = (u32)(state[v][DEBUGCTL_UNKNOWN]);
                if ((mark & K_EXPECTED) != 0) {
                    value &= DEBUGCTL_BITS;
                    if (state[v][DEBUGCTL_UNKNOWN] != 0) {
                        state[v][DEBUGCTL] = value;
                        state[v][DEBUGCTL_UNKNOWN] = 0;
                    }
                    counts[RECORDED_READS] += 1;
                    if (state[v][DEBUGCTL] == value) {
                        counts[AGREEMENTS_UNAIDED] += 1;
                    } else {
                        counts[DISAGREEMENTS] += 1;
                        if (counts[FIRST_EVENT] == 0) {
                            counts[FIRST_EVENT] = first_event + i + 1;
                            counts[FIRST_VCPU] = v;
                            counts[FIRST_REGISTER] = MSR_DEBUGCTL;
                            counts[FIRST_RECORDED] = value;
                            counts[FIRST_READ] = state[v][DEBUGCTL];
                        }
                    }
                }
                seen = state[v][DEBUGCTL];
            }
        } else if (kind == K_WRMSR) {
            if (selectors[i] == MSR_DEBUGCTL && (mark & K_UNKNOWN) == 0) {
                state[v][DEBUGCTL] = value & DEBUGCTL_BITS;
                state[v][DEBUGCTL_UNKNOWN] = 0;
            }
        } else if (kind == K_STATE) {
            state[v][HAS_DE] = value & 1;
        } else if (kind == K_STAGE) {
            state[v][STAGED + arg] = value;
        } else if (kind == K_SET_DEBUGREGS) {
            for (u64 k = 0; k < 6; k++) {
                state[v][k] = state[v][STAGED + k];
            }
            state[v][DR6] = canonical_dr6(state[v][DR6] & LOW_32, writable_dr6);
            state[v][DR7] = canonical_dr7(state[v][DR7]);
            state[v][DR6_UNAIDED] = state[v][DR6];
            state[v][UNDEFINED] = 0;
        } else if (kind == K_GET_DEBUGREGS) {
            story = REGISTERS;
            u64 dr6 = state[v][DR6] & ~state[v][UNDEFINED];
            seen = registers_digest(state[v][0], state[v][1], state[v][2], state[v][3], dr6, state[v][DR7]);
        } else if (kind == K_HOST_DEBUGGER) {
            u64 wanted = selectors[i];
            state[v][CONTROL] = kept_control(wanted);
            state[v][DEBUGGER_DR7] = canonical_dr7(state[v][STAGED + 5] & LOW_32);
            takes_db = false; /* what is injected is the guest's */
            if ((wanted & INJECTS_DB) != 0) {
                story = DB_FAULT;
                is_kept = true;
            } else if ((wanted & INJECTS_BP) != 0) {
                story = BP;
            }
        } else if (kind == K_RESET || kind == K_INIT) {
            for (u64 k = 0; k < 4; k++) {
                state[v][k] = 0;
            }
            state[v][DR6] = DR6_RESET;
            state[v][DR6_UNAIDED] = DR6_RESET;
            state[v][DR7] = DR7_RESET;
            state[v][UNDEFINED] = 0;
            state[v][HAS_DE] = 0;
            state[v][NESTED] = 0;
            state[v][HELD] = 0;
            state[v][SHADOW] = SHADOW_NONE;
            if (kind == K_RESET) { /* an INIT leaves MSRs as they are */
                state[v][DEBUGCTL] = 0;
                state[v][DEBUGCTL_UNKNOWN] = 0;
            }
        } else if (kind == K_VMRUN) {
            if (is_nested) {
                story = VMEXIT;
            } else {
                state[v][NESTED] = 1;
                state[v][NESTED_CONTROL] = value;
                state[v][NESTED_DR7] = canonical_dr7(state[v][STAGED + 5] & LOW_32);
                if (is_svm || (value & LOADS_CONTROLS) != 0) {
                    state[v][DR7] = state[v][NESTED_DR7];
                }
                if (is_svm) {
                    state[v][DR6] = canonical_dr6(state[v][STAGED + 4] & LOW_32, writable_dr6);
                    state[v][DR6_UNAIDED] = state[v][DR6];
                    state[v][UNDEFINED] = 0;
                } else {
                    state[v][NESTED_DEBUGCTL] = state[v][STAGED] & DEBUGCTL_BITS;
                    if ((value & LOADS_CONTROLS) != 0) {
                        state[v][DEBUGCTL] = state[v][NESTED_DEBUGCTL];
                        state[v][DEBUGCTL_UNKNOWN] = 0;
                    }
                }
            }
        } else if (kind == K_VMEXIT_TO_L1 && is_nested) {
            story = VMEXIT;
        }
        if (((USING_KINDS >> kind) & 1) != 0) {
            for (u64 k = 0; k < 6; k++) {
                state[v][STAGED + k] = 0;
            }
        }
        bool is_raised = kind == K_EXCEPTION;
        if (is_special || is_raised || story > READ) {
            /* The end of an instruction: its single step, and what a MOV SS before it has held. */
            bool is_refused = fault != FAULT_NONE || story == DB_FAULT || kind == K_EXCEPTION || story ==
                    VMEXIT;
            bool is_tail = is_special && is_computed && is_guests && (mark & K_NOT_RETIRED) == 0;
            if (is_tail && !is_refused) {
                bool is_whole = (mode & K_TF) != 0 || kind != K_FETCH || !is_fetch;
                if ((mode & K_TF) != 0 && story != READ && kind != K_MOV_SS) {
                    if (kind != K_INT1 && kind != K_INT3 && kind != K_INTN) {
                        cause |= DR6_BS;
                        story = DB_TRAP;
                    }
                }
                if (kind == K_MOV_SS) {
                    if (shadow != SHADOW_NONE) {
                        if (state[v][HELD] != 0) {
                            hits |= state[v][HELD];
                            story = DB_TRAP;
                        }
                        state[v][HELD] = 0;
                        state[v][SHADOW] = SHADOW_NONE;
                    }
                } else if (shadow == SHADOW_CAST && !is_whole) {
                    state[v][SHADOW] = SHADOW_FETCHED;
                } else if (shadow != SHADOW_NONE) {
                    state[v][SHADOW] = SHADOW_NONE;
                    if (state[v][HELD] != 0) {
                        if (story == READ || kind == K_INT3) {
                            state[v][SHADOW] = SHADOW_OVERDUE;
                        } else {
                            hits |= state[v][HELD];
                            state[v][HELD] = 0;
                            story = DB_TRAP;
                            is_kept = false;
                        }
                    }
                }
            } else if (is_tail) {
                state[v][HELD] = 0;
                state[v][SHADOW] = SHADOW_NONE;
            }
            if (story == DB_FAULT || story == DB_TRAP) {
                cause |= hits >> 4;
                /* No intercept of #DB covers INT1 on SVM, unless something held comes with it (assumed). */
                bool is_native_int1 = is_svm && kind == K_INT1 && is_kept;
                bool is_wanted = (nested_control & WANTS_DB) != 0 && kind != K_HOST_DEBUGGER &&
                        !is_native_int1;
                if (takes_db && fault != FAULT_GD && !is_native_int1) {
                    story = NOTHING; /* the host's debugger has it */
                } else if (is_wanted && !is_svm) {
                    story = VMEXIT;
                    undefined[i] = (u32)((hits >> 4) & ~hits);
                } else {
                    if (!is_kept) {
                        state[v][DR6] = dr6_after_db(state[v][DR6], cause);
                        if (kind != K_EXCEPTION) {
                            state[v][DR6_UNAIDED] = dr6_after_db(state[v][DR6_UNAIDED], cause);
                            state[v][UNDEFINED] = (state[v][UNDEFINED] & ~15ull) | ((hits >> 4) & ~hits);
                        }
                    }
                    if (!is_kept || kind == K_HOST_DEBUGGER) {
                        state[v][DR7] &= ~DR7_GD;
                    }
                    if (is_wanted) {
                        story = VMEXIT;
                    }
                }
            }
            if (story == VMEXIT) {
                is_raised = true;
                if (is_svm) {
                    cause = state[v][DR6];
                    undefined[i] = (u32)(state[v][UNDEFINED]);
                }
                if (is_svm || (state[v][NESTED_CONTROL] & SAVES_CONTROLS) != 0) {
                    state[v][NESTED_DR7] = state[v][DR7];
                }
                seen = (cause & LOW_32) | (state[v][NESTED_DR7] << 32);
                if (!is_svm) {
                    if ((state[v][NESTED_CONTROL] & SAVES_CONTROLS) != 0) {
                        state[v][NESTED_DEBUGCTL] = state[v][DEBUGCTL];
                        undefined[i] |= (u32)(state[v][DEBUGCTL_UNKNOWN] << DEBUGCTL_SHIFT);
                    }
                    seen |= state[v][NESTED_DEBUGCTL] << DEBUGCTL_SHIFT;
                    state[v][DEBUGCTL] = 0;
                    state[v][DEBUGCTL_UNKNOWN] = 0;
                }
                state[v][DR7] = DR7_RESET;
                state[v][NESTED] = 0;
            } else if (is_exception(story)) {
                is_raised = true;
                seen = state[v][DR6] | (state[v][DR7] << 32);
                undefined[i] = (u32)(state[v][UNDEFINED]);
            }
            if (is_special) {
                state[v][EXTRA] = state[v][SHADOW] | state[v][CONTROL] | state[v][NESTED];
            }
        }
        if (conditional == 0 && is_guests) {
            state[v][FAULTED] = is_raised ? 1 : 0;
        }
        stories[i] = story;
        story_values[i] = seen;
        if (story != NOTHING) {
            counts[DIGEST] += mixed(first_event + i, v, story, seen & ~(u64)undefined[i]);
        }
    }
}
