/*
 * The oracle loop in C, made by tests/bench/port.py from hypervisor_svc/engine/oracle.py: the same
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

static inline u64 dr6_after_db(u64 dr6, u64 cause)
{
    return (dr6 & ~DR6_TRAP_BITS) | DR6_RTM | cause;
}

static inline u64 canonical_dr7(u64 value)
{
    return (value & DR7_WRITABLE) | DR7_FIXED;
}

static inline u64 canonical_dr6(u64 value, u64 writable)
{
    return (value & writable) | (DR6_RESET & ~writable);
}

static inline u64 registers_digest(u64 db0, u64 db1, u64 db2, u64 db3, u64 dr6, u64 dr7)
{
    u64 odd = 0x9e3779b97f4a7c15ull;
    u64 total = db0 + (db1 * 3) + (db2 * 5) + (db3 * 7) + (dr6 * K_NINE) + (dr7 * K_ELEVEN);
    return total * odd;
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

static inline u64 kept_control(u64 selector)
{
    return (selector & K_ENABLE) != 0 ? (selector & ~K_INJECTS) : 0;
}

void run_lane(const u8 *kinds, u64 kinds_size,
              const u8 *args,
              const u8 *modes,
              const u8 *marks,
              const u8 *vcpus,
              const u32_anywhere *gap_cycles,
              const u32_anywhere *selectors,
              const u64_anywhere *values,
              u64 first_event,
              u8 *true_stories,
              u64 *true_values,
              u32 *true_undefined,
              u64 *lane,
              u64 *bases,
              u64 (*strides)[ROW_STRIDES],
              u64 *cells,
              u8 *next_memories,
              u8 *read_sources,
              u64 *cell_operations,
              u64 *cell_host_operations,
              u8 *groups,
              u32 *exit_codes,
              u32 *exception_codes,
              u8 (*classes)[ROW_CLASSES], u64 classes_size,
              u32 *passed_msrs, u64 passed_msrs_size,
              u64 (*vcpu)[ROW_VCPU],
              u64 (*physical)[ROW_PHYSICAL],
              u64 *counts,
              u64 (*bill_keys)[ROW_BILL_KEYS],
              u64 *bill_counts, u64 bill_counts_size,
              u64 *window_sizes,
              u64 (*leaks)[ROW_LEAKS][ROW_LEAKS_2],
              u64 (*declared)[ROW_DECLARED],
              u64 (*debug_exits)[ROW_DEBUG_EXITS],
              u64 *visits, u64 visits_size,
              u64 level,
              u64 (*decision_keys)[ROW_DECISION_KEYS],
              u64 *decision_numbers, u64 decision_numbers_size,
              u64 (*decisions)[ROW_DECISIONS],
              u16 *out_decisions,
              u8 *out_stories,
              u64 *out_values)
{
    bool is_svm = lane[IS_SVM] != 0;
    u64 writable_dr6 = lane[WRITABLE_DR6];
    u64 quirks = lane[QUIRKS];
    u64 declares = lane[DECLARES];
    bool is_computed = lane[IS_COMPUTED] != 0;
    u64 bill_mask = bill_counts_size - 1;
    u64 decision_mask = decision_numbers_size - 1;
    u64 refuses = lane[REFUSES];
    bool clusters = lane[CLUSTER_GAP] != 0;
    bool counts_visits = visits_size != 0;
    for (u64 i = 0; i < kinds_size; i++) {
        u64 kind = kinds[i];
        u64 group = groups[kind];
        u64 v = vcpus[i];
        u64 true_story = true_stories[i];
        u64 story = K_NOTHING;
        u64 seen = 0;
        u64 event_key = 0;
        u64 event_operations = 0;
        bool is_tail = false; /* a single step or what MOV SS has held may follow */
        bool is_special = vcpu[v][EXTRA] != 0 || (modes[i] & K_TF) != 0;
        is_special = is_special || ((SPECIAL_KINDS >> kind) & 1) != 0;
        u64 step;
        if (kind == K_ADVANCE || true_story == K_STORY_NOT_TAKEN) {
            story = true_story;
            step = K_DONE;
        } else if (group == K_HOST_GROUP) {
            step = K_HOST;
        } else if (is_special && (vcpu[v][SHADOW_OF_SS] != SHADOW_NONE || (modes[i] & K_TF) != 0)) {
            step = K_ENTER;
            is_tail = is_computed && kind < K_FIRST_ASYNCHRONOUS;
        } else if (group == K_QUIET && vcpu[v][RUNG] == 0) {
            step = K_DONE;
        } else if (vcpu[v][RUNG] == 0) {
            step = K_ATTEMPT;
        } else {
            step = K_ENTER;
        }
        if (clusters && kind == K_ADVANCE) {
            vcpu[v][CLUSTER] = 0; /* time passes; an event that is not taken is nothing */
        }
        bool shows_nothing = true_story == K_NOTHING || true_story == K_STORY_NOT_TAKEN;
        if (step == K_DONE && shows_nothing && level < LEVEL_DECISIONS) {
            continue;
        }
        u64 arg = args[i];
        u64 mode = modes[i];
        u64 mark = marks[i];
        bool is_free = group == K_DR && step == K_ATTEMPT && vcpu[v][ARMED] == 0;
        bool is_retired;
        u64 p, slot, true_value, value;
        if (is_free && level < LEVEL_DECISIONS && !is_special) {
            /* A plain access that runs natively and shows what it must, as most do: no step is needed. */
            p = vcpu[v][RESIDENT_ON] - 1;
            is_retired = (mark & K_RETIRED) != 0;
            bool is_plain = is_retired || (physical[p][HARDWARE_DR7] & DR7_GD) == 0;
            if (is_plain && (mode | (mark & K_NOT_PLAIN)) == 0 && arg != 4 && arg != 5) {
                slot = arg < 4 ? arg : (arg - 2);
                true_value = true_values[i];
                if (kind == K_MOV_TO_DR) {
                    value = values[i];
                    if (true_story == K_NOTHING && (is_retired || arg < 6 || (value >> 32) == 0)) {
                        if (arg == 6) {
                            value = canonical_dr6(value, writable_dr6);
                            vcpu[v][TRUE_UNDEFINED] = 0;
                        } else if (arg == 7) {
                            value = canonical_dr7(value);
                        } else {
                            vcpu[v][STALE_SLOTS] &= ~(1ull << slot);
                        }
                        physical[p][slot] = value;
                        if (slot < 5) {
                            physical[p][K_OWNER_AT + slot] = v + 1;
                        }
                        if (vcpu[v][WINDOW] == K_WINDOW_OPEN) {
                            vcpu[v][WINDOW_SIZE] += 1;
                        }
                        vcpu[v][K_TRUE_AT + slot] = true_value;
                        vcpu[v][K_DECLARED_AT + slot] = 0;
                        vcpu[v][EXECUTED] += 1;
                        continue;
                    }
                } else {
                    seen = physical[p][slot];
                    bool is_own = slot == 5 || physical[p][K_OWNER_AT + slot] == (v + 1);
                    bool is_true = ((seen ^ true_value) & ~(u64)true_undefined[i]) == 0;
                    if (is_own && is_true && true_story == K_STORY_READ) {
                        if (vcpu[v][WINDOW] == K_WINDOW_OPEN) {
                            vcpu[v][WINDOW_SIZE] += 1;
                        }
                        vcpu[v][EXECUTED] += 1;
                        seen &= ~(u64)true_undefined[i];
                        counts[DIGEST] += mixed(first_event + i, v, K_STORY_READ, seen);
                        continue;
                    }
                    seen = 0;
                }
            }
        }
        u64 selector = selectors[i];
        value = values[i];
        true_value = true_values[i];
        /* A MOV DR: the register after aliasing, its slot in a record, and what it is refused for. */
        bool is_alias = false;
        u64 register_ = arg;
        slot = arg;
        bool is_write = false;
        if (group == K_DR) {
            is_alias = arg == 4 || arg == 5;
            register_ = is_alias ? (arg + 2) : arg;
            slot = register_ < 4 ? register_ : (register_ - 2);
            is_write = kind == K_MOV_TO_DR;
            vcpu[v][EXECUTED] += step != K_DONE ? 1 : 0;
        }
        u64 full_value = value;
        if (group == K_DR && (mode & K_OPERAND_32) != 0) {
            value &= LOW_32;
        }
        if (is_write && (mark & K_UNKNOWN) != 0) {
            value = vcpu[v][K_TRUE_AT + slot]; /* as the reference takes it: the value that is there */
            full_value = value;
        }
        u64 subject = v; /* the vCPU whose ladder is climbed */
        u64 target = 0; /* rung to climb to */
        u64 handler = K_NO_MOMENT; /* the moment of the exit itself */
        u64 cause = 0; /* of a debug exception */
        u64 check = FAULT_NONE;
        u64 control = 0;
        u64 rule = 0; /* the declared deviation that fired in this event */
        u64 raising = 0; /* the cause of a debug exception that the next entry delivers */
        bool is_kept = false; /* the exception leaves DR6 and DR7 as they are */
        bool is_held = false; /* what MOV SS has held takes part */
        bool enters_nested = false;
        bool is_clustered = false;
        bool is_undone = false; /* a debugger's general detect left the access undone */
        bool is_explained = false; /* registers that differ as a declared deviation has left them */
        bool is_due = false; /* what MOV SS has held, if anything, comes instead of this event */
        bool is_surviving = false; /* in a window that has survived the debugger's coming */
        u64 exit_class = K_LIGHT;
        u64 stop = 0; /* the exception that the host's debugger is told of */
        u64 stop_dr6 = 0;
        u64 stop_dr7 = 0;
        u64 held_before = 0;
        u64 asks_debugctl = false; /* an access to it waits for the hypervisor */
        u64 sets_debugctl = false;
        u64 left_debugctl = 0; /* what a nested guest that was left had there */
        u64 host_control = 0;
        u64 nested_control = 0;
        bool takes_db = false;
        if (is_special) {
            held_before = vcpu[v][HELD];
            host_control = vcpu[v][CONTROL];
            nested_control = vcpu[v][NESTED] != 0 ? vcpu[v][NESTED_CONTROL] : 0;
            takes_db = (host_control & TAKES_DB) != 0;
        }
        bool is_fetch = kind == K_FETCH && arg != END_OF_FETCH;
        bool is_io = kind >= K_IN && kind <= K_OUTS;
        u64 taint = 0; /* bits that an emulated write left different */
        u64 kept_gd = 0; /* what a debug exception of this event should have cleared */
        u64 kept_dr6 = 0; /* what one that should not have come has set */
        bool is_exit = false;
        if (clusters && vcpu[v][CLUSTER] != 0 && step != K_DONE) {
            bool is_near = gap_cycles[i] <= lane[CLUSTER_GAP] && vcpu[v][RUNG] != 0;
            /* An exception that is due is delivered first. */
            bool is_allowed = vcpu[v][CLUSTER] < lane[CLUSTER_ACCESSES] && vcpu[v][SHADOW_OF_SS] !=
                    SHADOW_OVERDUE;
            if (group == K_DR && is_near && is_allowed && (mark & K_NOT_RETIRED) == 0 && step == K_ENTER) {
                step = K_CLUSTER;
            } else {
                vcpu[v][CLUSTER] = 0;
            }
        }
        is_tail = is_tail && (mark & K_NOT_RETIRED) == 0;
        bool is_reexecuted = false;
        bool peeks = false; /* a look into the table, with nothing done */
        u64 source = K_LIVE;
        bool is_here, is_open;
        u64 at, difference, dr7, here, hits, key, shade, there;
        while (step != K_DONE) {
            u64 moment = K_NO_MOMENT;
            bool climbs = false;
            u64 c = subject; /* the vCPU whose moment it is */
            p = 0; /* the physical CPU that it is on */
            bool is_hazard, is_refused, is_set, owns;
            u64 condition, dr6, owner, written;
            if (step == K_ENTER) {
                u64 rung = vcpu[v][RUNG];
                u64 home = vcpu[v][HOME];
                if (rung == 0) {
                    step = K_ATTEMPT;
                } else if (rung < K_NOT_RESIDENT && vcpu[v][RESIDENT_ON] != (home + 1)) {
                    climbs = true; /* it left a physical CPU on which it was still resident */
                } else if (rung == K_NOT_RESIDENT && physical[home][RESIDENT] != 0) {
                    c = physical[home][RESIDENT] - 1;
                    climbs = true; /* another vCPU gives way */
                } else {
                    moment = 4 - rung;
                    p = home;
                    if (rung == K_NOT_RESIDENT) {
                        physical[p][RESIDENT] = v + 1;
                        vcpu[v][RESIDENT_ON] = p + 1;
                    }
                }
                if (climbs) {
                    moment = K_LEAVE_GUEST + vcpu[c][RUNG];
                    p = vcpu[c][RESIDENT_ON] - 1;
                }
            } else if (step == K_CLIMB) {
                p = vcpu[subject][RESIDENT_ON] != 0 ? (vcpu[subject][RESIDENT_ON] - 1) : vcpu[subject][HOME];
                if (vcpu[subject][RUNG] < target) {
                    climbs = true;
                    moment = K_LEAVE_GUEST + vcpu[subject][RUNG];
                } else {
                    is_here = vcpu[subject][RESIDENT_ON] == (p + 1) && vcpu[subject][RUNG] != 0;
                    if (physical[p][HOST_ACTIVE] != 0 && is_here) {
                        if (physical[p][HARDWARE_DR7] == physical[p][HOST_DR7]) {
                            for (u64 k = 0; k < 4; k++) {
                                u64 enabled = (physical[p][HOST_DR7] >> (2 * k)) & 3;
                                owner = physical[p][K_OWNER_AT + k];
                                if (enabled != 0 && owner != K_HOST_OWNER && owner != K_NOBODY) {
                                    leaks[LEAK_ARMED_IN_HOST][k][owner] += 1;
                                }
                            }
                        } else {
                            counts[HOST_BLIND] += 1;
                        }
                    }
                    if (group == K_HOST_GROUP) {
                        step = K_HOST_APPLY;
                    } else if (handler != K_NO_MOMENT) {
                        moment = handler;
                        step = K_HANDLED;
                    } else {
                        step = K_DELIVER;
                    }
                }
            } else if (step == K_ATTEMPT) {
                p = vcpu[v][RESIDENT_ON] - 1;
                u64 code = exit_codes[kind];
                u64 sub = 0;
                is_exit = false;
                u64 fault = FAULT_NONE;
                u64 vector = K_NO_VECTOR;
                bool is_outside = false;
                bool is_overdue = false;
                shade = SHADOW_NONE;
                step = K_DONE;
                if (is_special) {
                    is_outside = vcpu[v][RUNG] != 0; /* an instruction that was emulated retires */
                    step = is_outside ? K_DELIVER : K_DONE;
                    shade = vcpu[v][SHADOW_OF_SS];
                    is_due = shade == SHADOW_OVERDUE || (shade == SHADOW_FETCHED && is_fetch);
                    is_due = is_due && is_tail && (mark & K_RETIRED) == 0;
                    is_overdue = is_due && vcpu[v][HELD] != 0;
                }
                bool is_foreign;
                if (is_outside) {
                    if (story == K_STORY_DB_TRAP) {
                        vector = 1;
                    }
                } else if (raising != 0) {
                    vector = 1;
                    cause = raising;
                    raising = 0;
                    story = K_STORY_DB_TRAP;
                } else if (is_overdue) {
                    vector = 1;
                    cause = vcpu[v][HELD] >> 4;
                    story = K_STORY_DB_FAULT;
                    is_held = true;
                    vcpu[v][HELD] = 0;
                    vcpu[v][SHADOW_OF_SS] = SHADOW_NONE;
                } else if (group == K_DR) {
                    bool is_sure = (mark & (K_RETIRED | K_NOT_RETIRED)) != 0;
                    bool is_wanted = (nested_control & WANTS_MOV_DR) != 0 && !is_sure;
                    bool is_armed = vcpu[v][ARMED] != 0;
                    if (is_armed && lane[UNINTERCEPTED] != 0) {
                        u64 bit = arg + (is_write ? 8 : 0);
                        is_armed = ((lane[UNINTERCEPTED] >> bit) & 1) == 0;
                    }
                    bool is_undefined = is_alias && vcpu[v][HAS_DE] != 0;
                    bool is_unprivileged = (mode & K_CPL) != 0;
                    is_retired = (mark & K_RETIRED) != 0;
                    if (!is_retired && (is_svm || !(is_armed || is_wanted))) {
                        fault = first_fault(is_undefined, is_unprivileged, (physical[p][HARDWARE_DR7] &
                                DR7_GD) != 0);
                    }
                    if ((is_armed || is_wanted) && fault == FAULT_NONE) {
                        is_exit = true;
                        if (!is_reexecuted) {
                            vcpu[v][TRAPPED] += 1;
                        }
                        if (is_svm) {
                            code = (is_write ? 48 : 32) + arg;
                        }
                        if (is_wanted && !(is_armed && (quirks & K_Q_NESTED_TRAPS_FIRST) != 0)) {
                            story = K_STORY_VMEXIT;
                            handler = K_NO_MOMENT;
                            is_retired = true;
                        } else {
                            handler = K_DR_TRAPPED;
                        }
                        if (!is_retired) {
                            bool gd = (physical[p][HARDWARE_DR7] & DR7_GD) != 0;
                            condition = (is_undefined ? 1 : 0) | (is_unprivileged ? 2 : 0) | (gd ? 4 : 0);
                            check = (lane[CHECK_ORDER] >> (2 * condition)) & 3;
                            bool is_early = check == FAULT_GD && (is_undefined || is_unprivileged);
                            if (is_early && ((declares >> (K_R_CHECK_ORDER - 1)) & 1) != 0) {
                                rule = K_R_CHECK_ORDER;
                            }
                            bool is_answered = check == FAULT_GD && (mark & K_NOT_RETIRED) == 0;
                            if (is_answered && (host_control & USES_HW) != 0) {
                                /* It is the debugger's general detect; the access is left undone. */
                                stop = 1;
                                stop_dr6 = DR6_RESET | DR6_BD;
                                if ((quirks & K_Q_STOP_SHOWS_SHADOW) != 0) {
                                    stop_dr6 = vcpu[v][SHADOW_DR6];
                                }
                                stop_dr7 = physical[p][HARDWARE_DR7];
                                handler = K_NO_MOMENT;
                                is_tail = false;
                                is_undone = true;
                                is_surviving = vcpu[v][SURVIVED] != 0;
                            } else if (is_answered && (nested_control & WANTS_DB) != 0 && !is_svm) {
                                story = K_STORY_VMEXIT;
                                cause = DR6_BD;
                                handler = K_NO_MOMENT;
                            }
                        }
                    } else if ((mark & K_NOT_RETIRED) == 0) {
                        if (fault == FAULT_NONE && !is_retired && is_write && register_ >= 6) {
                            if ((value >> 32) != 0) {
                                fault = FAULT_GP;
                            }
                        }
                        if (fault == FAULT_UD) {
                            story = K_STORY_UD;
                            vector = 6;
                        } else if (fault == FAULT_GP) {
                            story = K_STORY_GP;
                            vector = 13;
                        } else if (fault == FAULT_GD) {
                            story = K_STORY_DB_FAULT;
                            vector = 1;
                            cause = DR6_BD;
                        } else if (is_write) {
                            written = value;
                            if (register_ == 6) {
                                written = canonical_dr6(value, writable_dr6);
                            } else if (register_ == 7) {
                                written = canonical_dr7(value);
                            }
                            physical[p][slot] = written;
                            if (slot < 5) {
                                physical[p][K_OWNER_AT + slot] = v + 1;
                            }
                            if (vcpu[v][WINDOW] == K_WINDOW_OPEN) {
                                vcpu[v][WINDOW_SIZE] += 1;
                            }
                        } else {
                            story = K_STORY_READ;
                            seen = physical[p][slot];
                            if ((mode & K_OPERAND_32) != 0) {
                                seen &= LOW_32;
                            }
                            if (slot < 5) {
                                owner = physical[p][K_OWNER_AT + slot];
                                if (owner != (v + 1) && owner != K_NOBODY) {
                                    leaks[LEAK_USED_BY_GUEST][slot < 4 ? slot : register_][owner] += 1;
                                }
                            }
                            if (vcpu[v][WINDOW] == K_WINDOW_OPEN) {
                                vcpu[v][WINDOW_SIZE] += 1;
                            }
                        }
                    }
                } else if (group == K_MATCH) {
                    u64 access = ACCESS_WRITE;
                    bool is_blocked = false;
                    if (kind == K_FETCH) {
                        access = ACCESS_FETCH;
                        /* On VMX the shadow of MOV SS covers a code breakpoint on the next instruction. */
                        bool is_shaded = shade == SHADOW_CAST || (mode & K_INTERRUPT_SHADOW) != 0;
                        is_blocked = !is_fetch || (mode & K_RF) != 0 || (is_shaded && !is_svm);
                    } else if (kind == K_READ_KIND) {
                        access = ACCESS_READ;
                    }
                    if (is_computed && !is_blocked && (physical[p][HARDWARE_DR7] & DR7_ENABLES) != 0) {
                        hits = matching_slots(access, value, arg, physical[p][0], physical[p][1],
                                physical[p][2], physical[p][3], physical[p][HARDWARE_DR7]);
                        if ((hits & 15) != 0) {
                            story = kind == K_FETCH ? K_STORY_DB_FAULT : K_STORY_DB_TRAP;
                            vector = 1;
                            cause = hits >> 4;
                            for (u64 k = 0; k < 4; k++) {
                                owner = physical[p][K_OWNER_AT + k];
                                is_foreign = owner != (v + 1) && owner != K_NOBODY && !takes_db;
                                if (((hits >> k) & 1) != 0 && is_foreign) {
                                    leaks[LEAK_USED_BY_GUEST][k][owner] += 1;
                                }
                            }
                        }
                    }
                } else if (group == K_SOFTWARE) {
                    if (kind == K_INT1 && is_computed) {
                        story = K_STORY_DB_TRAP;
                        vector = 1;
                        is_kept = true;
                    } else if (kind == K_INT3 && is_computed) {
                        story = K_STORY_BP;
                        vector = 3;
                    } else if (kind == K_MOV_SS && is_computed && arg != 0) {
                        hits = matching_slots(ACCESS_READ, value, arg, physical[p][0], physical[p][1],
                                physical[p][2], physical[p][3], physical[p][HARDWARE_DR7]);
                        if ((hits & 15) == 0) {
                            hits = 0;
                        }
                        for (u64 k = 0; k < 4; k++) {
                            owner = physical[p][K_OWNER_AT + k];
                            is_foreign = owner != (v + 1) && owner != K_NOBODY && !takes_db;
                            if (((hits >> k) & 1) != 0 && is_foreign) {
                                leaks[LEAK_USED_BY_GUEST][k][owner] += 1;
                            }
                        }
                        if (shade == SHADOW_NONE && !takes_db) {
                            vcpu[v][HELD] = hits;
                        } else if (hits != 0) {
                            story = K_STORY_DB_TRAP;
                            vector = 1;
                            cause = hits >> 4;
                        }
                    }
                    if (kind == K_MOV_SS && is_computed && shade == SHADOW_NONE) {
                        vcpu[v][SHADOW_OF_SS] = SHADOW_CAST;
                        is_tail = false;
                    }
                } else if (group == K_NESTED_GROUP) {
                    is_refused = (refuses & K_REFUSES_NESTING) != 0;
                    if (kind == K_VMRUN && (quirks & K_Q_NESTED_NEEDS_CONTROLS) != 0) {
                        u64 needed = LOADS_CONTROLS | SAVES_CONTROLS;
                        is_refused = is_refused || (vcpu[v][NESTED] == 0 && (value & needed) != needed);
                    }
                    if (is_refused) {
                        counts[REFUSED] += 1;
                    } else if (kind == K_VMRUN) {
                        is_exit = true;
                        enters_nested = vcpu[v][NESTED] == 0;
                        if (!enters_nested) {
                            story = K_STORY_VMEXIT;
                        }
                    } else if (vcpu[v][NESTED] != 0) {
                        is_exit = true;
                        code = selector;
                        story = K_STORY_VMEXIT;
                    }
                } else if (group == K_EXITING) {
                    is_exit = true;
                } else if (group == K_MSR) {
                    is_exit = true;
                    for (u64 k = 0; k < passed_msrs_size; k++) {
                        if (selector == passed_msrs[k]) {
                            is_exit = false;
                        }
                    }
                    if (kind == K_WRMSR && selector == MSR_TSC_DEADLINE) {
                        sub = 1;
                    } else if (kind == K_WRMSR && selector == MSR_X2APIC_ICR) {
                        sub = 2;
                    } else if (selector == MSR_DEBUGCTL) {
                        /* A recording's first read says what was there, as nothing has said so before. */
                        bool says_first = (mark & K_EXPECTED) != 0 && true_undefined[i] != 0;
                        sets_debugctl = kind == K_WRMSR ? ((mark & K_UNKNOWN) == 0) : says_first;
                        asks_debugctl = is_exit;
                        if (sets_debugctl) {
                            vcpu[v][DECLARED_DEBUGCTL] = 0;
                        }
                        if (sets_debugctl && !is_exit) {
                            physical[p][HARDWARE_DEBUGCTL] = value & DEBUGCTL_BITS;
                        }
                        if (kind != K_WRMSR && !is_exit) {
                            story = K_STORY_READ;
                            seen = physical[p][HARDWARE_DEBUGCTL];
                        }
                    }
                } else if (group == K_CR_WRITE) {
                    if (arg == 0 || arg == 4) {
                        is_exit = true;
                        if (is_svm) {
                            code += arg;
                        }
                    }
                    if (arg == 4 && (mark & K_UNKNOWN) == 0) {
                        vcpu[v][HAS_DE] = (value >> 3) & 1;
                    }
                } else if (group == K_MMIO) {
                    is_exit = true;
                    sub = K_SUB_DEVICE_MEMORY;
                    if ((selector >> 12) == LOCAL_APIC_PAGE) {
                        sub = 3;
                    }
                } else if (group == K_EXCEPTION) {
                    vector = selector;
                    if (vector == 1) {
                        story = K_STORY_DB_FAULT;
                        cause = (mark & K_UNKNOWN) == 0 ? (value & DR6_CAUSES) : 0;
                    } else if (vector == 6) {
                        story = K_STORY_UD;
                    } else if (vector == 13) {
                        story = K_STORY_GP;
                    }
                } else if (group == K_RECORDED_EXIT) {
                    is_exit = true;
                    code = selector;
                } else if (group == K_SIGNAL) {
                    is_exit = true;
                }
                if (is_tail && !is_exit) {
                    /* The instruction retires, or was refused: its step, and what MOV SS has held. */
                    is_tail = false;
                    shade = vcpu[v][SHADOW_OF_SS];
                    is_refused = is_exception(story) && story != K_STORY_DB_TRAP && story != K_STORY_BP;
                    is_refused = is_refused || story == K_STORY_VMEXIT || group == K_EXCEPTION;
                    if (is_refused) {
                        vcpu[v][HELD] = 0;
                        vcpu[v][SHADOW_OF_SS] = SHADOW_NONE;
                    } else {
                        if ((mode & K_TF) != 0 && story != K_STORY_READ && group != K_SOFTWARE) {
                            cause |= DR6_BS;
                            story = K_STORY_DB_TRAP;
                            vector = 1;
                        }
                        if (shade == SHADOW_CAST && is_fetch && (mode & K_TF) == 0) {
                            vcpu[v][SHADOW_OF_SS] = SHADOW_FETCHED;
                        } else if (shade != SHADOW_NONE) {
                            vcpu[v][SHADOW_OF_SS] = SHADOW_NONE;
                            if (vcpu[v][HELD] != 0) {
                                if (story == K_STORY_READ || kind == K_INT3) {
                                    vcpu[v][SHADOW_OF_SS] = SHADOW_OVERDUE;
                                } else {
                                    cause |= vcpu[v][HELD] >> 4;
                                    vcpu[v][HELD] = 0;
                                    story = K_STORY_DB_TRAP;
                                    vector = 1;
                                    is_kept = false;
                                    is_held = true;
                                }
                            }
                        }
                    }
                }
                if (vector != K_NO_VECTOR) {
                    step = K_DELIVER;
                    bool is_taken = vector < 32 && ((lane[INTERCEPTED] >> vector) & 1) != 0;
                    /* No intercept of #DB covers INT1 on SVM, unless something held comes with it (assumed).
                            */
                    bool is_native_int1 = kind == K_INT1 && is_svm && !is_held;
                    bool leaves = vector == 1 && (nested_control & WANTS_DB) != 0 && !is_native_int1;
                    bool is_told = vector == 1 && takes_db && !is_native_int1;
                    is_told = is_told || (vector == 3 && (host_control & USES_SW) != 0);
                    if (is_native_int1 || is_told) {
                        is_taken = false;
                    }
                    if (is_told) {
                        story = K_NOTHING;
                        stop = vector;
                        is_undone = fault == FAULT_GD;
                        is_surviving = is_undone && vcpu[v][SURVIVED] != 0;
                        if (vector == 1 && is_outside) {
                            stop_dr6 = DR6_RESET | cause; /* DR7 is not filled in */
                        } else if (vector == 1 && (quirks & K_Q_STOP_UNWRITTEN) == 0) {
                            stop_dr6 = DR6_RESET | cause;
                            if ((quirks & K_Q_STOP_WITHOUT_RTM) != 0) {
                                stop_dr6 &= ~DR6_RTM;
                            }
                            stop_dr7 = physical[p][HARDWARE_DR7];
                            if (is_svm) {
                                stop_dr7 &= ~DR7_GD; /* cleared before the intercept */
                            }
                        }
                        if (is_outside && exit_class == K_HEAVY) {
                            stop = 0; /* an exit that goes to user space anyhow loses the step */
                        } else if (is_outside) {
                            handler = K_NO_MOMENT;
                            target = K_HEAVY;
                            step = K_CLIMB;
                        } else {
                            is_exit = true;
                            code = exception_codes[vector];
                            handler = K_NO_MOMENT;
                        }
                    } else if (is_outside) {
                        /* The hypervisor raises it for the instruction that it has emulated. */
                        if (leaves) {
                            story = K_STORY_VMEXIT;
                        }
                        if (is_taken && (is_svm || !leaves)) {
                            /* What is to be injected ends the inner run loop. */
                            handler = K_DB_EXIT;
                            target = K_LIGHT;
                            step = K_CLIMB;
                        } else if (leaves && is_svm) {
                            vcpu[v][FIELD_DR6] = dr6_after_db(vcpu[v][SHADOW_DR6], cause);
                            vcpu[v][FIELD_DR7] &= ~DR7_GD;
                            vcpu[v][SHADOW_DR6] = vcpu[v][FIELD_DR6];
                        } else if (!leaves) {
                            raising = cause;
                            story = K_NOTHING;
                            step = K_ENTER;
                        }
                    }
                    if (is_outside && step == K_CLIMB && exit_class < target && !is_clustered) {
                        /* The exit went further than its reason says. */
                        key = vcpu[v][PENDING_KEY];
                        vcpu[v][K_EXITS_BY_CLASS_AT + exit_class] -= 1;
                        vcpu[v][K_EXITS_BY_CLASS_AT + target] += 1;
                        vcpu[v][PENDING_KEY] = (key & ~K_CLASS_OF_KEY) | (target << K_KEY_CLASS);
                        event_key = (event_key & ~K_CLASS_OF_KEY) | (target << K_KEY_CLASS);
                        exit_class = target;
                    }
                    bool is_native = !(is_told || is_outside || is_kept || is_native_int1);
                    if (vector == 1 && is_native && (is_svm || !(is_taken || leaves))) {
                        /* The processor itself updates DR6 and clears GD; a VMX #DB exit does not. */
                        physical[p][HARDWARE_DR6] = dr6_after_db(physical[p][HARDWARE_DR6], cause);
                        physical[p][HARDWARE_DR7] &= ~DR7_GD;
                        bool shadow_has_gd = (vcpu[v][SHADOW_DR7] & DR7_GD) != 0;
                        if (!is_taken && vcpu[v][ARMED] != 0 && shadow_has_gd) {
                            if (((declares >> (K_R_SHADOW_KEEPS_GD - 1)) & 1) != 0) {
                                kept_gd = DR7_GD;
                                vcpu[v][DECLARED_DR7] |= DR7_GD;
                                vcpu[v][DECLARED_RULE] = K_R_SHADOW_KEEPS_GD;
                            }
                        }
                    }
                    if ((is_taken || leaves) && !is_outside && !is_told) {
                        is_exit = true;
                        code = exception_codes[vector];
                        handler = K_NO_MOMENT;
                        if (vector == 1 && is_taken && (is_svm || !leaves)) {
                            handler = K_DB_EXIT;
                        }
                        if (kind == K_INT1 && (quirks & K_Q_INT1_NOT_SKIPPED) != 0 && !is_held) {
                            story = K_STORY_DB_FAULT;
                        }
                        if (leaves) {
                            story = K_STORY_VMEXIT;
                        }
                    }
                }
                if (is_exit) {
                    exit_class = K_LIGHT;
                    if (group == K_SIGNAL) {
                        exit_class = K_HEAVY;
                    } else if (code < classes_size) {
                        exit_class = classes[code][sub];
                    }
                    if ((mark >> K_CLASS_SHIFT) != 0 && vector == K_NO_VECTOR && group != K_DR) {
                        exit_class = mark >> K_CLASS_SHIFT; /* not of an answer to a MOV DR or an exception */
                    }
                    if (vcpu[v][NESTED] != 0 && exit_class == K_FAST) {
                        if (is_svm || code != K_PREEMPTION_TIMER_REASON) {
                            exit_class = K_LIGHT; /* of a nested guest's exits only the timer's is fast */
                        }
                    }
                    if (stop != 0) {
                        exit_class = K_HEAVY;
                    }
                    key = code | (exit_class << K_KEY_CLASS) | (sub << K_KEY_SUB);
                    key |= group == K_SIGNAL ? K_SIGNAL_KEY : K_EXIT_ACCOUNT;
                    vcpu[v][PENDING_KEY] = key;
                    vcpu[v][PENDING_OPERATIONS] = 0;
                    if (group != K_SIGNAL) {
                        vcpu[v][K_EXITS_BY_CLASS_AT + exit_class] += 1;
                    }
                    /* A MOV DR that exits and is run again may fault, and exit for that too. */
                    event_key |= (event_key & K_ACCOUNTS) == 0 ? key : K_SECOND;
                    target = exit_class;
                    step = K_CLIMB;
                }
            } else if (step == K_DELIVER) {
                step = K_DONE;
                if (asks_debugctl) {
                    asks_debugctl = false;
                    if (sets_debugctl) {
                        vcpu[v][FIELD_DEBUGCTL] = value & DEBUGCTL_BITS;
                    }
                    if (kind != K_WRMSR) {
                        story = K_STORY_READ;
                        seen = vcpu[v][FIELD_DEBUGCTL];
                    }
                }
                if (is_io && (quirks & K_Q_MATCHES_IO) != 0 && is_computed && !takes_db) {
                    if (vcpu[v][HAS_DE] != 0 && arg != 0 && story == K_NOTHING) {
                        /* Against the registers of a guest that has them itself, else against the shadow. */
                        p = vcpu[v][RESIDENT_ON] != 0 ? (vcpu[v][RESIDENT_ON] - 1) : vcpu[v][HOME];
                        bool is_saved = lane[RUNG_OF_SAVING] != 0 && vcpu[v][RUNG] >= lane[RUNG_OF_SAVING];
                        if (vcpu[v][ARMED] != 0 || is_saved) {
                            hits = matching_slots(ACCESS_IO, selector, arg, vcpu[v][SHADOW], vcpu[v][SHADOW +
                                    1], vcpu[v][SHADOW + 2], vcpu[v][SHADOW + 3], vcpu[v][SHADOW_DR7]);
                        } else {
                            hits = matching_slots(ACCESS_IO, selector, arg, physical[p][0], physical[p][1],
                                    physical[p][2], physical[p][3], vcpu[v][FIELD_DR7]);
                        }
                        if ((hits & 15) != 0) {
                            cause = hits >> 4;
                            story = K_STORY_DB_TRAP;
                            is_tail = true;
                            is_special = true;
                        }
                    }
                }
                if (is_tail && stop == 0) {
                    step = K_ATTEMPT;
                } else if (enters_nested) {
                    enters_nested = false;
                    p = vcpu[v][RESIDENT_ON] != 0 ? (vcpu[v][RESIDENT_ON] - 1) : vcpu[v][HOME];
                    u64 entered_dr7 = canonical_dr7(vcpu[v][STAGED_DR7] & LOW_32);
                    vcpu[v][NESTED] = 1;
                    vcpu[v][NESTED_CONTROL] = value;
                    vcpu[v][NESTED_DR7] = entered_dr7;
                    if (is_svm || (value & LOADS_CONTROLS) != 0) {
                        vcpu[v][SHADOW_DR7] = entered_dr7;
                        control = K_CONTROL_NESTED;
                        moment = K_CONTROL_CHANGED;
                    }
                    if (is_svm) {
                        u64 entered_dr6 = vcpu[v][K_STAGED_AT + 4] & LOW_32;
                        vcpu[v][SHADOW_DR6] = canonical_dr6(entered_dr6, writable_dr6);
                        vcpu[v][FIELD_DR6] = vcpu[v][SHADOW_DR6];
                    } else {
                        vcpu[v][NESTED_DEBUGCTL] = vcpu[v][STAGED] & DEBUGCTL_BITS;
                        if ((value & LOADS_CONTROLS) != 0) {
                            vcpu[v][FIELD_DEBUGCTL] = vcpu[v][NESTED_DEBUGCTL];
                        }
                    }
                } else if (is_exception(story) || story == K_STORY_VMEXIT || story == K_STORY_REGISTERS) {
                    step = K_SHOW;
                    source = K_LIVE;
                    p = vcpu[v][RESIDENT_ON] != 0 ? (vcpu[v][RESIDENT_ON] - 1) : vcpu[v][HOME];
                    if (vcpu[v][ARMED] != 0 && bases[K_DR_TRAPPED] != ~0ull) {
                        peeks = true; /* where would the handler's first MOV be answered from? */
                        moment = K_DR_TRAPPED;
                        check = FAULT_NONE;
                    }
                }
            } else if (step == K_SHOW) {
                bool is_inside = vcpu[v][RUNG] == 0;
                p = vcpu[v][RESIDENT_ON] != 0 ? (vcpu[v][RESIDENT_ON] - 1) : vcpu[v][HOME];
                /* Inside, an exit would save what the processor holds; outside, it may have done so. */
                bool saves = lane[RUNG_OF_SAVING] == 1;
                if (!is_inside) {
                    saves = lane[RUNG_OF_SAVING] != 0 && vcpu[v][RUNG] >= lane[RUNG_OF_SAVING];
                }
                if (is_inside && (saves || source == K_LIVE)) {
                    dr6 = physical[p][HARDWARE_DR6];
                } else if (saves || source != K_LIVE) {
                    dr6 = vcpu[v][SHADOW_DR6];
                } else {
                    dr6 = is_svm ? vcpu[v][FIELD_DR6] : physical[p][HARDWARE_DR6];
                }
                dr7 = is_inside ? physical[p][HARDWARE_DR7] : canonical_dr7(vcpu[v][FIELD_DR7]);
                if (story == K_STORY_VMEXIT && vcpu[v][DEBUGGER] != K_OWNS_BREAKPOINTS) {
                    dr6 = canonical_dr6(dr6, writable_dr6);
                } else if (source == K_SHADOW_AS_IS) {
                    dr7 = vcpu[v][SHADOW_DR7];
                } else {
                    dr6 = canonical_dr6(dr6, writable_dr6);
                }
                seen = (dr6 & LOW_32) | (dr7 << 32);
                step = K_DONE;
                if (story == K_STORY_REGISTERS) {
                    dr6 &= ~vcpu[v][TRUE_UNDEFINED];
                    bool is_shadow = saves || source != K_LIVE;
                    u64 db0 = is_shadow ? vcpu[v][SHADOW] : physical[p][0];
                    u64 db1 = is_shadow ? vcpu[v][SHADOW + 1] : physical[p][1];
                    u64 db2 = is_shadow ? vcpu[v][SHADOW + 2] : physical[p][2];
                    u64 db3 = is_shadow ? vcpu[v][SHADOW + 3] : physical[p][3];
                    seen = registers_digest(db0, db1, db2, db3, dr6, dr7);
                    /* A digest does not say which register differs. */
                    u64 unlike = (db0 ^ vcpu[v][TRUE]) & ~vcpu[v][DECLARED];
                    unlike |= (db1 ^ vcpu[v][TRUE + 1]) & ~vcpu[v][DECLARED + 1];
                    unlike |= (db2 ^ vcpu[v][TRUE + 2]) & ~vcpu[v][DECLARED + 2];
                    unlike |= (db3 ^ vcpu[v][TRUE + 3]) & ~vcpu[v][DECLARED + 3];
                    unlike |= (dr6 ^ vcpu[v][TRUE_DR6]) & ~vcpu[v][DECLARED_DR6] & ~vcpu[v][TRUE_UNDEFINED];
                    is_explained = (unlike | ((dr7 ^ vcpu[v][TRUE_DR7]) & ~vcpu[v][DECLARED_DR7])) == 0;
                } else if (story == K_STORY_VMEXIT) {
                    step = K_LEAVE_NESTED;
                }
            } else if (step == K_LEAVE_NESTED) {
                step = K_DONE;
                p = vcpu[v][RESIDENT_ON] != 0 ? (vcpu[v][RESIDENT_ON] - 1) : vcpu[v][HOME];
                if (is_svm || (vcpu[v][NESTED_CONTROL] & SAVES_CONTROLS) != 0) {
                    vcpu[v][NESTED_DR7] = seen >> 32;
                }
                seen = ((is_svm ? seen : cause) & LOW_32) | (vcpu[v][NESTED_DR7] << 32);
                if (!is_svm) {
                    left_debugctl = vcpu[v][FIELD_DEBUGCTL];
                    if ((vcpu[v][NESTED_CONTROL] & SAVES_CONTROLS) != 0) {
                        vcpu[v][NESTED_DEBUGCTL] = left_debugctl;
                    }
                    seen |= vcpu[v][NESTED_DEBUGCTL] << DEBUGCTL_SHIFT;
                    vcpu[v][FIELD_DEBUGCTL] = 0;
                }
                vcpu[v][NESTED] = 0;
                vcpu[v][SHADOW_DR7] = DR7_RESET;
                control = K_CONTROL_NESTED;
                moment = K_CONTROL_CHANGED;
            } else if (step == K_CLUSTER) {
                step = K_HANDLED;
                p = vcpu[v][RESIDENT_ON] != 0 ? (vcpu[v][RESIDENT_ON] - 1) : vcpu[v][HOME];
                is_clustered = true;
                vcpu[v][CLUSTERED] += 1;
                vcpu[v][CLUSTER] += 1;
                vcpu[v][PENDING_KEY] += 1ull << K_KEY_CLUSTER;
                condition = (is_alias && vcpu[v][HAS_DE] != 0) ? 1 : 0;
                if ((mode & K_CPL) != 0) {
                    condition |= 2;
                }
                if ((vcpu[v][FIELD_DR7] & DR7_GD) != 0) {
                    condition |= 4;
                }
                if ((mark & K_RETIRED) == 0) {
                    check = (lane[CHECK_ORDER] >> (2 * condition)) & 3;
                }
                moment = K_DR_TRAPPED;
            } else if (step == K_HOST) {
                step = K_CLIMB;
                target = K_OUT_OF_SESSION;
                is_refused = kind == K_HOST_DEBUGGER && (refuses & K_REFUSES_DEBUGGER) != 0;
                if (kind == K_SET_DEBUGREGS || kind == K_GET_DEBUGREGS) {
                    is_refused = (refuses & K_REFUSES_DEBUGREGS) != 0;
                } else if (kind == K_HOST_BREAKPOINTS) {
                    is_refused = (refuses & K_REFUSES_HOST) != 0;
                }
                if (kind == K_STAGE) {
                    vcpu[v][K_STAGED_AT + arg] = value;
                    step = K_DONE;
                } else if (is_refused) {
                    counts[REFUSED] += 1;
                    for (u64 k = 0; k < 6; k++) {
                        vcpu[v][K_STAGED_AT + k] = 0;
                    }
                    step = K_DONE;
                } else if (kind == K_STATE) {
                    vcpu[v][HAS_DE] = value & 1;
                    step = K_DONE;
                } else if (kind == K_SCHED_IN) {
                    if (selector == vcpu[v][HOME]) {
                        target = 0;
                    }
                } else if (kind == K_HOST_BREAKPOINTS) {
                    if (physical[selector][RESIDENT] != 0) {
                        subject = physical[selector][RESIDENT] - 1;
                    } else {
                        step = K_HOST_APPLY;
                    }
                }
            } else {
                p = vcpu[subject][RESIDENT_ON] != 0 ? (vcpu[subject][RESIDENT_ON] - 1) : vcpu[subject][HOME];
                step = K_DONE;
                if (kind == K_SCHED_OUT) {
                    moment = K_SCHEDULED_OUT;
                } else if (kind == K_SCHED_IN) {
                    vcpu[v][HOME] = selector;
                    p = selector;
                    moment = K_SCHEDULED_IN;
                } else if (kind == K_HOST_BREAKPOINTS) {
                    p = selector;
                    for (u64 k = 0; k < 6; k++) {
                        physical[p][K_HOST_AT + k] = vcpu[v][K_STAGED_AT + k];
                        vcpu[v][K_STAGED_AT + k] = 0;
                    }
                    physical[p][HOST_DR6] = DR6_RESET;
                    dr7 = canonical_dr7(physical[p][HOST_DR7] & LOW_32);
                    physical[p][HOST_DR7] = dr7;
                    physical[p][HARDWARE_DR7] = dr7;
                    bool is_active = (dr7 & DR7_ENABLES) != 0;
                    physical[p][HOST_ACTIVE] = is_active ? 1 : 0;
                    if (is_active) {
                        for (u64 k = 0; k < 4; k++) {
                            physical[p][k] = physical[p][K_HOST_AT + k];
                            physical[p][K_OWNER_AT + k] = K_HOST_OWNER;
                        }
                    }
                    if (physical[p][RESIDENT] != 0) {
                        control = K_CONTROL_HOST;
                        moment = K_CONTROL_CHANGED;
                    }
                } else if (kind == K_GET_DEBUGREGS) {
                    story = K_STORY_REGISTERS;
                    step = K_DELIVER;
                } else if (kind == K_HOST_DEBUGGER) {
                    vcpu[v][CONTROL] = kept_control(selector);
                    bool is_attached = vcpu[v][CONTROL] != 0;
                    owns = (vcpu[v][CONTROL] & USES_HW) != 0;
                    vcpu[v][DEBUGGER] = owns ? K_OWNS_BREAKPOINTS : (is_attached ? 1 : 0);
                    for (u64 k = 0; k < 4; k++) {
                        vcpu[v][K_DEBUGGER_DB_AT + k] = vcpu[v][K_STAGED_AT + k];
                    }
                    vcpu[v][DEBUGGER_DR7] = canonical_dr7(vcpu[v][STAGED_DR7] & LOW_32);
                    for (u64 k = 0; k < 6; k++) {
                        vcpu[v][K_STAGED_AT + k] = 0;
                    }
                    bool is_opening = vcpu[v][WINDOW] == K_WINDOW_OPENING;
                    bool survives = is_opening || vcpu[v][SURVIVED] != 0;
                    survives = survives && (vcpu[v][CONTROL] & TAKES_DB) != 0;
                    vcpu[v][SURVIVED] = survives ? 1 : 0;
                    is_hazard = owns && is_opening;
                    if (is_hazard && ((declares >> (K_R_OPEN_SURVIVES - 1)) & 1) != 0) {
                        for (u64 k = 0; k < 6; k++) {
                            vcpu[v][K_DECLARED_AT + k] = ~0ull;
                        }
                        vcpu[v][DECLARED_RULE] = K_R_OPEN_SURVIVES;
                    }
                    control = K_CONTROL_DEBUGGER;
                    moment = K_CONTROL_CHANGED;
                    if ((selector & INJECTS_DB) != 0) {
                        story = K_STORY_DB_FAULT;
                        step = K_DELIVER;
                        if ((quirks & K_Q_DB_KEEPS_GD) == 0) {
                            vcpu[v][SHADOW_DR7] &= ~DR7_GD;
                        } else if ((vcpu[v][SHADOW_DR7] & DR7_GD) != 0) {
                            if (((declares >> (K_R_DB_KEEPS_GD - 1)) & 1) != 0) {
                                vcpu[v][DECLARED_DR7] |= DR7_GD;
                                vcpu[v][DECLARED_RULE] = K_R_DB_KEEPS_GD;
                            }
                        }
                    } else if ((selector & INJECTS_BP) != 0) {
                        story = K_STORY_BP;
                        step = K_DELIVER;
                    }
                } else {
                    is_set = kind == K_SET_DEBUGREGS;
                    for (u64 k = 0; k < 6; k++) {
                        u64 reset = k == 4 ? DR6_RESET : (k == 5 ? DR7_RESET : 0);
                        u64 raw = is_set ? vcpu[v][K_STAGED_AT + k] : reset;
                        raw = k >= 4 ? (raw & LOW_32) : raw;
                        u64 true_ = raw;
                        if (k == 4) {
                            true_ = canonical_dr6(raw, writable_dr6);
                        } else if (k == 5) {
                            true_ = canonical_dr7(raw);
                        }
                        if (is_set) {
                            vcpu[v][K_STAGED_AT + k] = 0;
                        }
                        vcpu[v][K_SHADOW_AT + k] = raw;
                        vcpu[v][K_TRUE_AT + k] = true_;
                        vcpu[v][K_DECLARED_AT + k] = 0;
                        if (raw != true_ && ((declares >> (K_R_RAW_READS - 1)) & 1) != 0) {
                            vcpu[v][K_DECLARED_AT + k] = raw ^ true_;
                            vcpu[v][DECLARED_RULE] = K_R_RAW_READS;
                        }
                    }
                    vcpu[v][TRUE_UNDEFINED] = 0;
                    is_hazard = vcpu[v][DEBUGGER] == K_OWNS_BREAKPOINTS && vcpu[v][WINDOW] ==
                            K_WINDOW_OPENING;
                    if (is_hazard && ((declares >> (K_R_OPEN_SURVIVES - 1)) & 1) != 0) {
                        for (u64 k = 0; k < 6; k++) {
                            vcpu[v][K_DECLARED_AT + k] = ~0ull;
                        }
                        vcpu[v][DECLARED_RULE] = K_R_OPEN_SURVIVES;
                    }
                    if (!is_set) {
                        vcpu[v][HAS_DE] = 0;
                        vcpu[v][NESTED] = 0;
                        vcpu[v][HELD] = 0;
                        vcpu[v][SHADOW_OF_SS] = SHADOW_NONE;
                    }
                    if (kind == K_RESET) {
                        vcpu[v][FIELD_DEBUGCTL] = 0;
                        vcpu[v][DECLARED_DEBUGCTL] = 0;
                    }
                    control = is_set ? K_CONTROL_DEBUGREGS : K_CONTROL_RESET;
                    moment = K_CONTROL_CHANGED;
                }
            }
            if (moment == K_NO_MOMENT) {
                continue;
            }
            u64 bill_key = 0;
            u64 bill_operations = 0;
            if (climbs && moment == K_LEAVE_GUEST) {
                if (vcpu[c][CONTROLS_ARE_OFF] == 0) {
                    vcpu[c][FIELD_DR7] = physical[p][HARDWARE_DR7];
                    vcpu[c][FIELD_DEBUGCTL] = physical[p][HARDWARE_DEBUGCTL];
                }
                if (is_svm) {
                    vcpu[c][FIELD_DR6] = physical[p][HARDWARE_DR6];
                }
                physical[p][HARDWARE_DR7] = DR7_RESET;
                physical[p][HARDWARE_DEBUGCTL] = 0;
                if (!is_exit || c != v) {
                    /* The host took the vCPU out of the guest: an exit that no event records. */
                    key = exit_codes[K_EXTERNAL_INTERRUPT] | (K_LIGHT << K_KEY_CLASS);
                    key |= K_EXIT_ACCOUNT | (K_SUB_KICK << K_KEY_SUB);
                    vcpu[c][PENDING_KEY] = key;
                    vcpu[c][PENDING_OPERATIONS] = 0;
                    vcpu[c][K_EXITS_BY_CLASS_AT + K_LIGHT] += 1;
                    if (c == v && (event_key & K_ACCOUNTS) == 0) {
                        event_key |= key;
                    }
                }
            }
            u64 mask = 0;
            u64 own_operations = 0;
            u64 host_operations = 0;
            if (bases[moment] != ~0ull) {
                u64 cell = bases[moment];
                cell += strides[moment][K_I_MEMORY] * vcpu[c][MEMORY];
                cell += strides[moment][K_I_BELIEF] * vcpu[c][BELIEF];
                cell += strides[moment][K_I_DEBUGGER] * vcpu[c][DEBUGGER];
                cell += strides[moment][K_I_HOST] * physical[p][HOST_ACTIVE];
                if ((vcpu[c][SHADOW_DR7] & DR7_ENABLES) != 0) {
                    cell += strides[moment][K_I_ENABLES];
                }
                if ((vcpu[c][SHADOW_DR7] & DR7_GD) != 0) {
                    cell += strides[moment][K_I_GD];
                }
                if (vcpu[c][LAST_LOAD] != (p + 1)) {
                    cell += strides[moment][K_I_MOVED];
                }
                if (vcpu[c][FIELD_DR7] == DR7_RESET && vcpu[c][FIELD_DEBUGCTL] == 0) {
                    cell += strides[moment][K_I_AT_RESET];
                }
                if (moment == K_DR_TRAPPED) {
                    cell += strides[moment][K_I_CHECK] * check;
                    if (peeks) {
                        source = read_sources[cell + strides[moment][K_I_CLASS]];
                        peeks = false;
                        continue;
                    }
                    if (is_write) {
                        cell += strides[moment][K_I_WRITE];
                    }
                    if (register_ >= 6) {
                        cell += strides[moment][K_I_CLASS] * (register_ - 5);
                    }
                    if (is_write && register_ == 7 && (value & DR7_ENABLES) != 0) {
                        cell += strides[moment][K_I_WOULD_ENABLE];
                    }
                } else if (moment == K_CONTROL_CHANGED) {
                    cell += strides[moment][K_I_CONTROL] * control;
                }
                mask = cells[cell];
                if (counts_visits) {
                    visits[cell] += 1;
                }
                if (moment == K_DR_TRAPPED && (mark & K_NOT_RETIRED) != 0) {
                    mask &= ~K_A_ANSWERS; /* it exits, and then the host takes over */
                }
                own_operations = cell_operations[cell];
                host_operations = cell_host_operations[cell];
                if (next_memories[cell] != KEEP_MEMORY) {
                    vcpu[c][MEMORY] = next_memories[cell];
                }
            }
            if (mask != 0 || moment == K_DR_TRAPPED) {
                bool opens = (mask & K_A_DISARM) != 0 && vcpu[c][ARMED] != 0;
                bool closes = (mask & K_A_ARM) != 0 && vcpu[c][WINDOW] != K_WINDOW_CLOSED;
                bool synchronizes = opens || closes || vcpu[c][WINDOW] == K_WINDOW_OPENING;
                u64 operations = own_operations;
                if (moment == K_DR_TRAPPED && !is_clustered) {
                    operations += lane[TRAP_OPERATIONS];
                }
                if ((mask & K_A_HOST_SAVE) != 0) {
                    u64 owners = 0;
                    for (u64 k = 0; k < 6; k++) {
                        vcpu[c][K_SAVED_AT + k] = physical[p][k];
                        if (k < 5) {
                            owners |= physical[p][K_OWNER_AT + k] << (12 * k);
                        }
                    }
                    vcpu[c][SAVED_OWNERS] = owners;
                }
                if ((mask & K_A_ZERO_DR7) != 0) {
                    physical[p][HARDWARE_DR7] = DR7_RESET;
                }
                if ((mask & K_A_SAVE_DR0_3) != 0) {
                    for (u64 k = 0; k < 4; k++) {
                        vcpu[c][K_SHADOW_AT + k] = physical[p][k];
                    }
                }
                if ((mask & K_A_SAVE_DR6) != 0) {
                    vcpu[c][SHADOW_DR6] = is_svm ? vcpu[c][FIELD_DR6] : physical[p][HARDWARE_DR6];
                }
                if ((mask & K_A_SAVE_DR7) != 0) {
                    vcpu[c][SHADOW_DR7] = vcpu[c][FIELD_DR7];
                }
                if ((mask & K_A_RESET_DR6) != 0) {
                    physical[p][HARDWARE_DR6] = DR6_RESET;
                    physical[p][OWNER_DR6] = K_NOBODY;
                }
                if ((mask & K_A_ARM) != 0) {
                    if (vcpu[c][ARMED] == 0) {
                        counts[SWITCHES] += 1;
                    }
                    vcpu[c][ARMED] = 1;
                    if (vcpu[c][WINDOW] == K_WINDOW_OPEN) {
                        u64 size = vcpu[c][WINDOW_SIZE];
                        u64 bucket = size;
                        if (size >= K_WINDOW_EXACT) {
                            bucket = K_WINDOW_EXACT - 7;
                            while (size > 0) {
                                size >>= 1;
                                bucket += 1;
                            }
                        }
                        window_sizes[bucket] += 1;
                        if (c == v) {
                            event_key |= K_CLOSED;
                        }
                    }
                    vcpu[c][WINDOW] = K_WINDOW_CLOSED;
                }
                if ((mask & K_A_MERGE_DB_SHADOW) != 0) {
                    vcpu[c][SHADOW_DR6] = dr6_after_db(vcpu[c][SHADOW_DR6], cause);
                    if ((quirks & K_Q_DB_KEEPS_GD) == 0) {
                        vcpu[c][SHADOW_DR7] &= ~DR7_GD;
                        vcpu[c][FIELD_DR7] &= ~DR7_GD;
                        if (vcpu[c][DEBUGGER] != K_OWNS_BREAKPOINTS) {
                            vcpu[c][EFFECTIVE_DR7] &= ~DR7_GD;
                        }
                    } else if (((vcpu[c][SHADOW_DR7] | vcpu[c][FIELD_DR7]) & DR7_GD) != 0) {
                        if (((declares >> (K_R_DB_KEEPS_GD - 1)) & 1) != 0) {
                            kept_gd = DR7_GD;
                            vcpu[c][DECLARED_DR7] |= DR7_GD;
                            vcpu[c][DECLARED_RULE] = K_R_DB_KEEPS_GD;
                        }
                    }
                }
                if ((mask & (K_A_EMULATE | K_A_INJECT)) != 0) {
                    /* Where this answers another check than the processor would, a declared rule fires. */
                    u64 true_check = FAULT_NONE;
                    if ((mark & K_RETIRED) == 0) {
                        true_check = first_fault(is_alias && vcpu[v][HAS_DE] != 0, (mode & K_CPL) != 0,
                                (vcpu[v][TRUE_DR7] & DR7_GD) != 0);
                    }
                    if (check != true_check) {
                        if (check == FAULT_GD && (vcpu[v][DECLARED_DR7] & DR7_GD) != 0) {
                            rule = vcpu[v][DECLARED_RULE];
                        } else if (((declares >> (K_R_CHECK_ORDER - 1)) & 1) != 0) {
                            rule = K_R_CHECK_ORDER;
                        }
                    }
                }
                if ((mask & K_A_EMULATE) != 0) {
                    event_key |= K_EMULATED;
                    vcpu[c][PENDING_KEY] |= K_EMULATED;
                    u64 operand = value;
                    if ((quirks & K_Q_FULL_OPERAND) != 0 && is_write && full_value != value) {
                        operand = full_value;
                        if (((declares >> (K_R_FULL_OPERAND - 1)) & 1) != 0) {
                            rule = K_R_FULL_OPERAND;
                        }
                    }
                    if (!is_write) {
                        story = K_STORY_READ;
                        seen = vcpu[c][K_SHADOW_AT + slot];
                        if ((mode & K_OPERAND_32) != 0) {
                            seen &= LOW_32;
                        }
                    } else if (register_ >= 6 && (operand >> 32) != 0 && (mark & K_RETIRED) == 0) {
                        story = K_STORY_GP;
                        if ((mask & K_A_RECOMPUTE) != 0) { /* nothing was written */
                            mask &= ~K_A_RECOMPUTE;
                            operations -= lane[RECOMPUTE_OPERATIONS];
                        }
                        if ((quirks & K_Q_SKIPS_ON_FAULT) != 0) {
                            story = K_STORY_GP_SKIPPED;
                            if (((declares >> (K_R_SKIPS_ON_FAULT - 1)) & 1) != 0) {
                                rule = K_R_SKIPS_ON_FAULT;
                            }
                        }
                    } else {
                        written = operand;
                        if (register_ == 6) {
                            written = (operand & lane[EMULATED_DR6_WRITABLE]) | lane[EMULATED_DR6_FIXED];
                            taint = written ^ canonical_dr6(value & LOW_32, writable_dr6);
                        } else if (register_ == 7) {
                            written = (operand & lane[EMULATED_DR7_WRITABLE]) | DR7_FIXED;
                            taint = written ^ canonical_dr7(value & LOW_32);
                        } else {
                            taint = written ^ value;
                        }
                        vcpu[c][K_SHADOW_AT + slot] = written;
                        if (vcpu[c][DEBUGGER] != K_OWNS_BREAKPOINTS) {
                            if (slot < 4) {
                                vcpu[c][K_EFFECTIVE_AT + slot] = written;
                            } else if (slot == 5) {
                                vcpu[c][EFFECTIVE_DR7] = written;
                            }
                        }
                    }
                }
                if ((mask & K_A_INJECT) != 0) {
                    if (check == FAULT_UD) {
                        story = K_STORY_UD;
                    } else if (check == FAULT_GP) {
                        story = K_STORY_GP;
                    } else {
                        story = K_STORY_DB_FAULT;
                        dr6 = vcpu[c][SHADOW_DR6];
                        if ((quirks & K_Q_GD_KEEPS_TRAP_BITS) == 0) {
                            dr6 &= ~DR6_TRAP_BITS;
                        } else if (((declares >> (K_R_GD_KEEPS_TRAP_BITS - 1)) & 1) != 0) {
                            vcpu[c][DECLARED_DR6] |= dr6 & DR6_TRAP_BITS;
                            vcpu[c][DECLARED_RULE] = K_R_GD_KEEPS_TRAP_BITS;
                        }
                        vcpu[c][SHADOW_DR6] = dr6 | DR6_BD | DR6_RTM;
                        vcpu[c][SHADOW_DR7] &= ~DR7_GD;
                        vcpu[c][FIELD_DR7] &= ~DR7_GD;
                        if (vcpu[c][DEBUGGER] != K_OWNS_BREAKPOINTS) {
                            vcpu[c][EFFECTIVE_DR7] &= ~DR7_GD;
                        }
                    }
                }
                if ((mask & (K_A_EFFECTIVE | K_A_EFFECTIVE_RAW | K_A_EFFECTIVE_MERGED)) != 0) {
                    owns = vcpu[c][DEBUGGER] == K_OWNS_BREAKPOINTS && (mask & K_A_EFFECTIVE_RAW) == 0;
                    bool merges = owns && (mask & K_A_EFFECTIVE_MERGED) != 0;
                    dr7 = vcpu[c][SHADOW_DR7];
                    for (u64 k = 0; k < 4; k++) {
                        u64 debugger_slot = (vcpu[c][DEBUGGER_DR7] >> (2 * k)) & 3;
                        if (owns && (!merges || debugger_slot != 0)) {
                            vcpu[c][K_EFFECTIVE_AT + k] = vcpu[c][K_DEBUGGER_DB_AT + k];
                            u64 field = (3ull << (2 * k)) | (15ull << (16 + (4 * k)));
                            dr7 = (dr7 & ~field) | (vcpu[c][DEBUGGER_DR7] & field);
                        } else {
                            vcpu[c][K_EFFECTIVE_AT + k] = vcpu[c][K_SHADOW_AT + k];
                        }
                    }
                    if (merges) {
                        /* The guest's general detect is emulated then. */
                        dr7 = (dr7 & ~DR7_GD) | (vcpu[c][DEBUGGER_DR7] & DR7_GD);
                    }
                    vcpu[c][EFFECTIVE_DR7] = (owns && !merges) ? vcpu[c][DEBUGGER_DR7] : dr7;
                    if ((mask & K_A_SAVE_DR0_3) != 0) { /* what was stale is now the shadow */
                        for (u64 k = 0; k < 4; k++) {
                            if (((vcpu[c][STALE_SLOTS] >> k) & 1) != 0) {
                                vcpu[c][K_DECLARED_AT + k] = ~0ull;
                                vcpu[c][DECLARED_RULE] = K_R_STALE_EFFECTIVE;
                            }
                        }
                    }
                    vcpu[c][STALE_SLOTS] = 0;
                }
                if ((mask & K_A_RECOMPUTE) != 0) {
                    if ((mask & (K_A_EFFECTIVE | K_A_EFFECTIVE_RAW | K_A_EFFECTIVE_MERGED)) == 0) {
                        owns = vcpu[c][DEBUGGER] == K_OWNS_BREAKPOINTS;
                        vcpu[c][EFFECTIVE_DR7] = owns ? vcpu[c][DEBUGGER_DR7] : vcpu[c][SHADOW_DR7];
                    }
                    vcpu[c][FIELD_DR7] = vcpu[c][EFFECTIVE_DR7];
                    vcpu[c][BELIEF] = (vcpu[c][EFFECTIVE_DR7] & DR7_ENABLES) != 0 ? 1 : 0;
                }
                if ((mask & K_A_LOAD_DR0_3) != 0) {
                    for (u64 k = 0; k < 4; k++) {
                        physical[p][k] = vcpu[c][K_EFFECTIVE_AT + k];
                        physical[p][K_OWNER_AT + k] = c + 1;
                    }
                    if (vcpu[c][DEBUGGER] == K_OWNS_BREAKPOINTS) {
                        for (u64 k = 0; k < 4; k++) {
                            u64 word = vcpu[c][K_EFFECTIVE_AT + k];
                            bool is_debuggers = word == vcpu[c][K_DEBUGGER_DB_AT + k];
                            if (is_debuggers && word != vcpu[c][K_SHADOW_AT + k]) {
                                physical[p][K_OWNER_AT + k] = K_DEBUGGER_OWNER;
                            }
                        }
                    }
                    vcpu[c][LAST_LOAD] = p + 1;
                }
                if ((mask & K_A_LOAD_DR6) != 0) {
                    if (is_svm) {
                        vcpu[c][FIELD_DR6] = vcpu[c][SHADOW_DR6];
                    } else {
                        physical[p][HARDWARE_DR6] = canonical_dr6(vcpu[c][SHADOW_DR6], writable_dr6);
                        physical[p][OWNER_DR6] = c + 1;
                    }
                }
                if ((mask & K_A_CLEAN_DR6) != 0) {
                    vcpu[c][FIELD_DR6] = DR6_RESET;
                }
                if ((mask & K_A_LOAD_DR7) != 0) {
                    vcpu[c][FIELD_DR7] = vcpu[c][EFFECTIVE_DR7];
                }
                if ((mask & K_A_MERGE_DB_HARDWARE) != 0) {
                    if (is_svm) {
                        vcpu[c][FIELD_DR6] = dr6_after_db(vcpu[c][FIELD_DR6], cause);
                    } else {
                        physical[p][HARDWARE_DR6] = dr6_after_db(physical[p][HARDWARE_DR6], cause);
                    }
                    vcpu[c][FIELD_DR7] &= ~DR7_GD;
                }
                if ((mask & K_A_WRITE_THROUGH) != 0) {
                    if (is_write) {
                        operations += 1ull << 8;
                        written = value;
                        if (register_ == 6) {
                            written = canonical_dr6(value & LOW_32, writable_dr6);
                        } else if (register_ == 7) {
                            written = canonical_dr7(value & LOW_32);
                        }
                        physical[p][slot] = written;
                        if (slot < 5) {
                            physical[p][K_OWNER_AT + slot] = c + 1;
                        }
                    } else {
                        operations += 1;
                        story = K_STORY_READ;
                        seen = physical[p][slot];
                        if ((mode & K_OPERAND_32) != 0) {
                            seen &= LOW_32;
                        }
                        if (slot < 5) {
                            owner = physical[p][K_OWNER_AT + slot];
                            if (owner != (c + 1) && owner != K_NOBODY) {
                                leaks[LEAK_USED_BY_GUEST][slot < 4 ? slot : register_][owner] += 1;
                            }
                        }
                    }
                }
                if ((mask & K_A_HOST_RESTORE) != 0) {
                    for (u64 k = 0; k < 6; k++) {
                        physical[p][k] = physical[p][K_HOST_AT + k];
                        if (k < 5) {
                            physical[p][K_OWNER_AT + k] = K_HOST_OWNER;
                        }
                    }
                }
                if ((mask & K_A_HOST_RESTORE_SAVED) != 0) {
                    for (u64 k = 0; k < 6; k++) {
                        physical[p][k] = vcpu[c][K_SAVED_AT + k];
                        if (k < 5) {
                            physical[p][K_OWNER_AT + k] = (vcpu[c][SAVED_OWNERS] >> (12 * k)) & 4095;
                        }
                    }
                }
                if ((mask & K_A_DR7_ON) != 0) {
                    physical[p][HARDWARE_DR7] = vcpu[c][EFFECTIVE_DR7];
                }
                if ((mask & K_A_DR7_OFF) != 0) {
                    physical[p][HARDWARE_DR7] = DR7_RESET;
                }
                if ((mask & K_A_CONTROLS_OFF) != 0) {
                    vcpu[c][CONTROLS_ARE_OFF] = 1;
                }
                if ((mask & K_A_CONTROLS_ON) != 0) {
                    vcpu[c][CONTROLS_ARE_OFF] = 0;
                }
                if ((mask & K_A_DISARM) != 0) {
                    if (vcpu[c][ARMED] != 0) {
                        counts[SWITCHES] += 1;
                        vcpu[c][WINDOW] = K_WINDOW_OPENING;
                        vcpu[c][WINDOW_SIZE] = 0;
                    }
                    vcpu[c][ARMED] = 0;
                }
                if (clusters && moment == K_DR_TRAPPED) {
                    if ((mask & K_A_STAY) == 0) {
                        vcpu[c][CLUSTER] = 0;
                    } else if (vcpu[c][CLUSTER] == 0) {
                        vcpu[c][CLUSTER] = 1;
                    }
                }
                u64 packed = synchronizes ? (operations & LOW_32) : ((operations & LOW_32) << 32);
                packed += (host_operations & LOW_32) << 32;
                u64 msr = (operations + host_operations) >> 32;
                bool is_host_moment = moment == K_CONTROL_CHANGED && control != K_CONTROL_NESTED;
                if (is_host_moment || moment == K_SCHEDULED_IN || moment == K_SCHEDULED_OUT) {
                    bill_key = K_HOST_ACCOUNT | (msr << K_KEY_MSR);
                    bill_operations = packed;
                } else {
                    vcpu[c][PENDING_KEY] += msr << K_KEY_MSR;
                    vcpu[c][PENDING_OPERATIONS] += packed;
                }
                if (c == v) {
                    event_operations += packed;
                    event_key += msr << K_KEY_MSR;
                }
            }
            if (moment <= K_ENTER_GUEST) {
                vcpu[c][RUNG] -= 1;
                if (moment == K_ENTER_GUEST) {
                    if (clusters) {
                        vcpu[c][CLUSTER] = 0;
                    }
                    bool is_skipped = vcpu[c][CONTROLS_ARE_OFF] != 0;
                    if (is_skipped && c == v) {
                        event_key |= K_SKIPPED;
                    }
                    if (!is_skipped) {
                        physical[p][HARDWARE_DR7] = canonical_dr7(vcpu[c][FIELD_DR7] & LOW_32);
                        physical[p][HARDWARE_DEBUGCTL] = vcpu[c][FIELD_DEBUGCTL];
                    }
                    if (is_svm) {
                        physical[p][HARDWARE_DR6] = canonical_dr6(vcpu[c][FIELD_DR6], writable_dr6);
                        physical[p][OWNER_DR6] = c + 1;
                    }
                    if (vcpu[c][WINDOW] == K_WINDOW_OPENING) {
                        vcpu[c][WINDOW] = K_WINDOW_OPEN;
                        vcpu[c][WINDOWS] += 1;
                        if (c == v) {
                            event_key |= K_OPENED;
                        }
                    }
                    if (vcpu[c][DEBUGGER] != K_OWNS_BREAKPOINTS) {
                        dr7 = physical[p][HARDWARE_DR7];
                        u64 true_dr7 = vcpu[c][TRUE_DR7];
                        is_open = vcpu[c][ARMED] == 0;
                        is_hazard = is_open && dr7 != true_dr7;
                        if (is_skipped && physical[p][HARDWARE_DEBUGCTL] != vcpu[c][FIELD_DEBUGCTL]) {
                            is_hazard = true;
                        }
                        if (is_open) {
                            difference = physical[p][HARDWARE_DR6] ^ vcpu[c][TRUE_DR6];
                            is_hazard = is_hazard || (difference & ~vcpu[c][TRUE_UNDEFINED]) != 0;
                        }
                        if (is_open || ((dr7 | true_dr7) & DR7_ENABLES) != 0) {
                            for (u64 k = 0; k < 4; k++) {
                                here = (dr7 >> (2 * k)) & 3;
                                there = (true_dr7 >> (2 * k)) & 3;
                                bool differs = physical[p][k] != vcpu[c][K_TRUE_AT + k];
                                if (here != there || (differs && (is_open || here != 0))) {
                                    is_hazard = true;
                                }
                                owner = physical[p][K_OWNER_AT + k];
                                if (here != 0 && owner != (c + 1) && owner != K_NOBODY) {
                                    leaks[LEAK_ARMED_IN_GUEST][k][owner] += 1;
                                }
                            }
                        }
                        if (is_hazard) {
                            counts[LATENT] += 1;
                        }
                    }
                    bill_key = vcpu[c][PENDING_KEY] | (is_skipped ? K_SKIPPED : 0);
                    bill_operations = vcpu[c][PENDING_OPERATIONS];
                    vcpu[c][PENDING_KEY] = 0;
                    vcpu[c][PENDING_OPERATIONS] = 0;
                }
            } else if (moment <= K_LOSE_RESIDENCE) {
                vcpu[c][RUNG] += 1;
                if (moment == K_LOSE_RESIDENCE) {
                    physical[p][RESIDENT] = 0;
                    vcpu[c][RESIDENT_ON] = 0;
                }
            } else if (moment == K_CONTROL_CHANGED) {
                is_set = control == K_CONTROL_DEBUGREGS || control == K_CONTROL_RESET;
                if (is_set && vcpu[c][DEBUGGER] != K_OWNS_BREAKPOINTS) {
                    for (u64 k = 0; k < 4; k++) {
                        bool is_stale = vcpu[c][K_EFFECTIVE_AT + k] != vcpu[c][K_SHADOW_AT + k];
                        if (is_stale && ((declares >> (K_R_STALE_EFFECTIVE - 1)) & 1) != 0) {
                            vcpu[c][STALE_SLOTS] |= 1ull << k;
                        }
                    }
                }
            }
            if (step == K_HANDLED) {
                step = K_DELIVER;
                if ((mask & K_A_REEXECUTE) != 0) {
                    event_key |= K_REEXECUTED;
                    step = K_ENTER;
                    if ((mark & K_NOT_RETIRED) != 0) {
                        step = K_DONE;
                    } else if (is_reexecuted) {
                        counts[FAILURE] = FAILURE_LIVE_LOCK;
                        return;
                    }
                    is_reexecuted = true;
                    is_exit = false;
                    handler = K_NO_MOMENT;
                    check = FAULT_NONE;
                }
            }
            if (bill_key != 0) {
                at = (bill_key ^ (bill_operations * 0x9e3779b97f4a7c15ull)) * 0xbf58476d1ce4e5b9ull;
                at = (at >> 40) & bill_mask;
                while (bill_counts[at] != 0 && (bill_keys[at][0] != bill_key || bill_keys[at][1] !=
                        bill_operations)) {
                    at = (at + 1) & bill_mask;
                }
                if (bill_counts[at] == 0) {
                    if ((counts[BILL_ROWS] + 1) >= bill_mask) {
                        counts[FAILURE] = FAILURE_BILL_FULL;
                        return;
                    }
                    counts[BILL_ROWS] += 1;
                    bill_keys[at][0] = bill_key;
                    bill_keys[at][1] = bill_operations;
                }
                bill_counts[at] += 1;
            }
        }
        /* What the guest saw, against the reference. */
        u64 undefined = true_undefined[i];
        if (story != true_story || (story != K_NOTHING && ((seen ^ true_value) & ~undefined) != 0)) {
            is_here = story == K_STORY_DB_FAULT || story == K_STORY_DB_TRAP;
            bool is_there = true_story == K_STORY_DB_FAULT || true_story == K_STORY_DB_TRAP;
            u64 known = vcpu[v][DECLARED_DR6] | (vcpu[v][DECLARED_DR7] << 32);
            if (taint != 0 && slot >= 4 && ((declares >> (K_R_EMULATED_MASKS - 1)) & 1) != 0) {
                known |= (taint & LOW_32) << (32 * (slot - 4)); /* by this very access */
            }
            u64 differing = (seen ^ true_value) & ~undefined & ~known;
            if (rule == 0 && is_io && (true_story == K_STORY_DB_TRAP || true_story == K_STORY_VMEXIT)) {
                /* No bit of a breakpoint, or no exception at all if no step is due either. */
                bool is_missing = story == K_NOTHING && (mode & K_TF) == 0;
                is_missing = is_missing || (story == true_story && (differing & ~15ull) == 0);
                if (is_missing && ((declares >> (K_R_IO_BREAKPOINT - 1)) & 1) != 0) {
                    rule = K_R_IO_BREAKPOINT;
                }
            }
            if (rule == 0 && kind == K_INT1 && !is_held) {
                bool is_merged = (differing & ~(15 | DR6_RTM | (DR7_GD << 32))) == 0;
                is_merged = is_merged && (story == true_story || (is_here && is_there));
                if (is_merged && ((declares >> (K_R_INT1_AS_DB - 1)) & 1) != 0) {
                    rule = K_R_INT1_AS_DB;
                }
            }
            bool is_declared = rule != 0;
            bool is_trap = story == K_STORY_DB_TRAP || true_story == K_STORY_DB_TRAP;
            is_trap = is_trap || story == K_STORY_VMEXIT || true_story == K_STORY_VMEXIT;
            bool is_overtaken = true_story == K_STORY_DB_FAULT && (true_value & 15 & ~undefined) != 0;
            is_due = is_due || (is_overtaken && kind != K_FETCH);
            bool is_matched = group == K_MATCH || group == K_SOFTWARE || is_held || is_trap || is_overtaken;
            if (!is_declared && is_matched) {
                /* Slots that may match otherwise: stale, or with an address or a condition declared. */
                u64 slots = vcpu[v][STALE_SLOTS];
                for (u64 k = 0; k < 4; k++) {
                    u64 conditions = (3ull << (2 * k)) | (15ull << (16 + (4 * k)));
                    if (vcpu[v][K_DECLARED_AT + k] != 0 || (vcpu[v][DECLARED_DR7] & conditions) != 0) {
                        slots |= 1ull << k;
                    }
                }
                hits = (is_here || story == K_STORY_VMEXIT) ? seen : true_value;
                if (story == true_story || (is_here && is_there)) {
                    hits = seen ^ true_value;
                }
                if (((true_value | seen) & slots) != 0 && (kind == K_INT1 || is_due || (is_here && is_there &&
                        story != true_story))) {
                    hits = 0; /* what it missed, or found, comes instead of what this event brings */
                }
                u64 enables = (seen | true_value) >> 32;
                for (u64 k = 0; k < 4; k++) {
                    if (((enables >> (2 * k)) & 3) == 0) {
                        hits &= ~(1ull << k);
                    }
                }
                /* All else that can be seen is as it must be. */
                u64 rest = 0;
                if (story == true_story) {
                    rest = differing & ~(15 | (story == K_STORY_VMEXIT ? DR6_BS : 0));
                } else if (is_here && is_there) {
                    rest = differing & ~(15 | DR6_BS);
                } else if (is_here && !is_write) {
                    rest = seen ^ (vcpu[v][TRUE_DR6] | (vcpu[v][TRUE_DR7] << 32));
                    rest &= ~(vcpu[v][TRUE_UNDEFINED] | known | 15 | DR6_RTM | (DR7_GD << 32));
                }
                if (is_due) { /* or comes instead of general detect */
                    rest &= ~DR6_BD;
                }
                if (kind == K_INT1) { /* that changes them only with something held */
                    rest &= ~(DR6_RTM | (DR7_GD << 32));
                }
                if ((hits & 15 & ~undefined & ~slots) == 0 && slots != 0 && rest == 0) {
                    rule = vcpu[v][STALE_SLOTS] == 0 ? vcpu[v][DECLARED_RULE] : K_R_STALE_EFFECTIVE;
                }
                is_declared = rule != 0;
            }
            bool is_mov_dr = group == K_DR;
            bool is_read = story == K_STORY_READ && true_story == story;
            if (!is_declared && is_read && is_mov_dr && slot < 4) {
                if (((vcpu[v][STALE_SLOTS] >> slot) & 1) != 0) {
                    rule = K_R_STALE_EFFECTIVE;
                    is_declared = true;
                }
            }
            if (!is_declared && story == true_story) {
                u64 allowed = known;
                if (story == K_STORY_VMEXIT && !is_svm) {
                    allowed |= vcpu[v][DECLARED_DEBUGCTL] << DEBUGCTL_SHIFT;
                }
                if (story == K_STORY_READ) {
                    allowed = is_mov_dr ? vcpu[v][K_DECLARED_AT + slot] : vcpu[v][DECLARED_DEBUGCTL];
                } else if (story == K_STORY_REGISTERS) {
                    allowed = is_explained ? ~0ull : 0;
                }
                if (((seen ^ true_value) & ~undefined & ~allowed) == 0) {
                    is_declared = true;
                    rule = vcpu[v][DECLARED_RULE];
                    if (rule == 0) { /* it is by this access, whose masks are declared */
                        rule = K_R_EMULATED_MASKS;
                    }
                }
            }
            bool is_debug = is_here || is_there || story == K_STORY_VMEXIT || true_story == K_STORY_VMEXIT;
            if (!is_declared && vcpu[v][DUE_RULE] != 0 && is_debug) {
                /* The registers may have changed since, from outside. */
                rule = vcpu[v][DUE_RULE];
                is_declared = true;
            }
            if (!is_declared && is_surviving) {
                /* The window that survived the debugger let the guest set a general detect of its own. */
                if (((declares >> (K_R_OPEN_SURVIVES - 1)) & 1) != 0) {
                    rule = K_R_OPEN_SURVIVES;
                    is_declared = true;
                }
            }
            if (!is_declared && group == K_DR && (vcpu[v][DECLARED_DR7] & DR7_GD) != 0) {
                bool is_gd = story == K_STORY_DB_FAULT || true_story == K_STORY_DB_FAULT || is_undone;
                is_gd = is_gd || (takes_db && true_story == K_NOTHING);
                if (is_gd || story == K_STORY_VMEXIT || true_story == K_STORY_VMEXIT) {
                    rule = vcpu[v][DECLARED_RULE];
                    is_declared = rule != 0;
                }
            }
            if (is_declared) {
                declared[rule - 1][0] += 1;
                if (declared[rule - 1][1] == 0) {
                    declared[rule - 1][1] = first_event + i + 1;
                }
                bool is_here_undone = is_exception(story) && story != K_STORY_DB_TRAP;
                is_here_undone = is_here_undone || story == K_STORY_VMEXIT;
                bool is_there_undone = is_exception(true_story) && true_story != K_STORY_DB_TRAP;
                is_there_undone = is_there_undone || true_story == K_STORY_VMEXIT;
                if (story == true_story && is_exception(story)) {
                    difference = (seen ^ true_value) & ~undefined;
                    kept_dr6 |= difference & LOW_32; /* a trap comes after the write of its own event */
                    kept_gd |= difference >> 32;
                    vcpu[v][DECLARED_DR6] |= kept_dr6;
                    vcpu[v][DECLARED_DR7] |= kept_gd;
                    vcpu[v][DECLARED_RULE] = rule;
                }
                if ((story == K_STORY_VMEXIT) != (true_story == K_STORY_VMEXIT)) {
                    /* The stream goes on where the architecture is: the lane is brought there. */
                    bool is_left = true_story == K_STORY_VMEXIT;
                    vcpu[v][NESTED] = is_left ? 0 : 1;
                    dr7 = is_left ? DR7_RESET : vcpu[v][TRUE_DR7];
                    vcpu[v][SHADOW_DR7] = dr7;
                    if (vcpu[v][DEBUGGER] != K_OWNS_BREAKPOINTS) {
                        vcpu[v][EFFECTIVE_DR7] = dr7;
                        vcpu[v][FIELD_DR7] = dr7;
                        vcpu[v][BELIEF] = (dr7 & DR7_ENABLES) != 0 ? 1 : 0;
                        if (vcpu[v][RUNG] == 0) {
                            physical[vcpu[v][RESIDENT_ON] - 1][HARDWARE_DR7] = dr7;
                        }
                    }
                    if (!is_svm) {
                        u64 debugctl = is_left ? 0 : left_debugctl;
                        vcpu[v][FIELD_DEBUGCTL] = debugctl;
                        if (vcpu[v][RUNG] == 0) {
                            physical[vcpu[v][RESIDENT_ON] - 1][HARDWARE_DEBUGCTL] = debugctl;
                        }
                    }
                }
                if (is_svm && (story == K_STORY_VMEXIT || true_story == K_STORY_VMEXIT)) {
                    vcpu[v][DECLARED_DR6] |= DR6_CAUSES | DR6_RTM;
                    vcpu[v][DECLARED_RULE] = rule;
                }
                if (story != true_story) {
                    if (is_here || is_there) {
                        /* What the one exception has done and the other has not. */
                        u64 before = vcpu[v][TRUE_DR6] | (vcpu[v][TRUE_DR7] << 32);
                        here = is_exception(story) ? seen : before;
                        there = is_exception(true_story) ? true_value : before;
                        difference = (here ^ there) | vcpu[v][TRUE_UNDEFINED];
                        if (is_write || story == K_STORY_VMEXIT || true_story == K_STORY_VMEXIT) {
                            difference |= DR6_CAUSES | DR6_RTM | (DR7_GD << 32);
                        }
                        kept_dr6 = difference & LOW_32;
                        vcpu[v][DECLARED_DR6] |= kept_dr6;
                        vcpu[v][DECLARED_DR7] |= difference >> 32;
                        vcpu[v][DECLARED_RULE] = rule;
                    }
                    if (is_here_undone != is_there_undone) {
                        /* What MOV SS has held goes on as the stream does. */
                        bool is_quiet_fetch = is_fetch && true_story == K_NOTHING;
                        bool is_kept_on = is_here_undone && (is_quiet_fetch || true_story == K_STORY_READ);
                        vcpu[v][HELD] = is_kept_on ? held_before : 0;
                        shade = is_fetch ? SHADOW_FETCHED : SHADOW_OVERDUE;
                        vcpu[v][SHADOW_OF_SS] = (is_kept_on && held_before != 0) ? shade : SHADOW_NONE;
                    }
                    if (is_write && is_here_undone != is_there_undone) {
                        vcpu[v][K_DECLARED_AT + slot] = ~0ull;
                        vcpu[v][DECLARED_RULE] = rule;
                    }
                    if (kind == K_WRMSR && selector == MSR_DEBUGCTL && is_here_undone != is_there_undone) {
                        vcpu[v][DECLARED_DEBUGCTL] = DEBUGCTL_BITS;
                        vcpu[v][DECLARED_RULE] = rule;
                    }
                }
            } else {
                counts[DIVERGED] += 1;
                if (counts[FIRST_EVENT] == 0) {
                    counts[FIRST_EVENT] = first_event + i + 1;
                    counts[FIRST_VCPU] = v;
                    counts[FIRST_KIND] = kind;
                    counts[FIRST_REGISTER] = register_;
                    counts[FIRST_STORY] = story;
                    counts[FIRST_VALUE] = seen;
                    counts[FIRST_TRUE_STORY] = true_story;
                    counts[FIRST_TRUE_VALUE] = true_value;
                }
            }
        }
        if (story != K_NOTHING && story != K_STORY_NOT_TAKEN) {
            counts[DIGEST] += mixed(first_event + i, v, story, seen & ~undefined);
        }
        if (stop != 0) {
            u64 rows = counts[DEBUG_EXIT_ROWS];
            at = 0;
            while (at < rows && (debug_exits[at][DEBUG_EXIT_EXCEPTION] != stop ||
                    debug_exits[at][DEBUG_EXIT_DR6] != stop_dr6 || debug_exits[at][DEBUG_EXIT_DR7] !=
                    stop_dr7)) {
                at += 1;
            }
            if (at >= K_LAST_DEBUG_EXIT) {
                at = K_LAST_DEBUG_EXIT;
            } else if (at == rows) {
                debug_exits[at][DEBUG_EXIT_EXCEPTION] = stop;
                debug_exits[at][DEBUG_EXIT_DR6] = stop_dr6;
                debug_exits[at][DEBUG_EXIT_DR7] = stop_dr7;
                counts[DEBUG_EXIT_ROWS] += 1;
            }
            if (debug_exits[at][DEBUG_EXIT_COUNT] == 0) {
                debug_exits[at][DEBUG_EXIT_FIRST] = first_event + i;
            }
            debug_exits[at][DEBUG_EXIT_COUNT] += 1;
        }
        if (is_special) {
            vcpu[v][EXTRA] = vcpu[v][SHADOW_OF_SS] | vcpu[v][CONTROL] | vcpu[v][NESTED];
            if (kind == K_VMRUN && true_story != K_STORY_NOT_TAKEN) {
                if (true_story != K_STORY_VMEXIT && (is_svm || (value & LOADS_CONTROLS) != 0)) {
                    vcpu[v][TRUE_DR7] = canonical_dr7(vcpu[v][STAGED_DR7] & LOW_32);
                }
                if (true_story != K_STORY_VMEXIT && !is_svm && (value & LOADS_CONTROLS) != 0) {
                    vcpu[v][DECLARED_DEBUGCTL] = 0;
                }
                if (true_story != K_STORY_VMEXIT && is_svm) {
                    vcpu[v][TRUE_DR6] = canonical_dr6(vcpu[v][K_STAGED_AT + 4] & LOW_32, writable_dr6);
                    vcpu[v][TRUE_UNDEFINED] = 0;
                }
                for (u64 k = 0; k < 6; k++) {
                    vcpu[v][K_STAGED_AT + k] = 0;
                }
            }
        }
        bool is_passed = false; /* a write that was done before what it brought along left the nested guest */
        u64 tested;
        if (true_story == K_STORY_VMEXIT && is_write && !is_due) {
            tested = (host_control & USES_HW) != 0 ? vcpu[v][DEBUGGER_DR7] : vcpu[v][TRUE_DR7];
            u64 true_fault = first_fault(is_alias && vcpu[v][HAS_DE] != 0, (mode & K_CPL) != 0, (tested &
                    DR7_GD) != 0);
            is_passed = true_fault == FAULT_NONE && (nested_control & WANTS_MOV_DR) == 0;
            is_passed = is_passed || (mark & K_RETIRED) != 0;
        }
        if (true_story >= K_STORY_DB_FAULT) {
            if (true_story == K_STORY_VMEXIT) {
                vcpu[v][TRUE_DR7] = DR7_RESET;
                vcpu[v][DECLARED_DR7] = 0;
                if (is_svm) {
                    vcpu[v][TRUE_DR6] = true_value & LOW_32;
                    vcpu[v][TRUE_UNDEFINED] = undefined;
                } else {
                    vcpu[v][DECLARED_DEBUGCTL] = 0;
                }
            } else if (is_exception(true_story)) {
                vcpu[v][TRUE_DR6] = true_value & LOW_32;
                vcpu[v][TRUE_DR7] = true_value >> 32;
                vcpu[v][TRUE_UNDEFINED] = undefined;
            }
        }
        bool is_written = is_write && (mark & K_NOT_RETIRED) == 0;
        if (is_written && (mark & K_RETIRED) == 0 && takes_db) {
            /* General detect that the debugger takes leaves the access undone. */
            tested = (host_control & USES_HW) != 0 ? vcpu[v][DEBUGGER_DR7] : vcpu[v][TRUE_DR7];
            bool is_mine = (host_control & USES_HW) != 0 || is_svm;
            is_written = !is_mine || (tested & DR7_GD) == 0;
            if (!is_written && !is_undone && (vcpu[v][DECLARED_DR7] & DR7_GD) != 0) {
                vcpu[v][K_DECLARED_AT + slot] = ~0ull; /* a general detect that is missing let it happen */
            }
        }
        is_written = is_written && (true_story == K_NOTHING || true_story == K_STORY_DB_TRAP || is_passed);
        if (is_written && !(is_passed && slot == 5)) {
            if (true_story == K_NOTHING) {
                vcpu[v][K_TRUE_AT + slot] = true_value;
            } else if (slot < 4) {
                vcpu[v][K_TRUE_AT + slot] = value; /* DR6 and DR7 come with the trap */
            } else if (is_passed && slot == 4 && !is_svm) {
                vcpu[v][TRUE_DR6] = canonical_dr6(value & LOW_32, writable_dr6);
            }
            if (slot == 4 && (true_story == K_NOTHING || (is_passed && !is_svm))) {
                vcpu[v][TRUE_UNDEFINED] = 0;
            }
            if (is_undone) {
                is_open = is_surviving && ((declares >> (K_R_OPEN_SURVIVES - 1)) & 1) != 0;
                if (is_open) {
                    vcpu[v][DECLARED_RULE] = K_R_OPEN_SURVIVES;
                }
                if (is_open || (vcpu[v][DECLARED_DR7] & DR7_GD) != 0) {
                    vcpu[v][K_DECLARED_AT + slot] = ~0ull; /* a general detect that is none took it */
                }
            } else if (!is_exception(story) || story == K_STORY_DB_TRAP) {
                u64 kept = slot == 5 ? kept_gd : 0;
                vcpu[v][K_DECLARED_AT + slot] = slot == 4 ? kept_dr6 : kept;
                if (slot < 4) {
                    vcpu[v][STALE_SLOTS] &= ~(1ull << slot);
                }
                if (taint != 0) {
                    u64 masks_rule = rule != 0 ? rule : K_R_EMULATED_MASKS;
                    if (((declares >> (masks_rule - 1)) & 1) != 0) {
                        vcpu[v][K_DECLARED_AT + slot] |= taint;
                        vcpu[v][DECLARED_RULE] = masks_rule;
                    }
                }
            }
        }
        if (is_computed && kind < K_FIRST_ASYNCHRONOUS && true_story != K_STORY_NOT_TAKEN) {
            if (kind == K_MOV_SS) {
                u64 due_rule = vcpu[v][STALE_SLOTS] == 0 ? vcpu[v][DECLARED_RULE] : K_R_STALE_EFFECTIVE;
                is_open = vcpu[v][STALE_SLOTS] != 0 || (vcpu[v][DECLARED_DR7] & ~DR7_GD) != 0;
                for (u64 k = 0; k < 4; k++) {
                    is_open = is_open || vcpu[v][K_DECLARED_AT + k] != 0;
                }
                vcpu[v][DUE_RULE] = is_open ? due_rule : 0;
            } else if (vcpu[v][DUE_RULE] != 0) {
                if (is_written && takes_db) {
                    vcpu[v][K_DECLARED_AT + slot] = ~0ull; /* what goes to the debugger leaves it undone */
                    vcpu[v][DECLARED_RULE] = vcpu[v][DUE_RULE];
                }
                bool is_passing = kind == K_FETCH || kind == K_INT3 || (group == K_DR && !is_write);
                if (!is_passing || (is_exception(true_story) && true_story != K_STORY_BP)) {
                    vcpu[v][DUE_RULE] = 0;
                }
            }
        }
        if (level >= LEVEL_DECISIONS) {
            key = event_key | (story << K_KEY_STORY);
            at = (key ^ (event_operations * 0x9e3779b97f4a7c15ull)) * 0xbf58476d1ce4e5b9ull;
            at = (at >> 40) & decision_mask;
            while (decision_numbers[at] != 0 && (decision_keys[at][0] != key || decision_keys[at][1] !=
                    event_operations)) {
                at = (at + 1) & decision_mask;
            }
            u64 number = decision_numbers[at];
            if (number == 0) {
                number = counts[DECISION_ROWS] + 1;
                if (number < K_UNNUMBERED && number < decision_mask) {
                    counts[DECISION_ROWS] = number;
                    decision_numbers[at] = number;
                    decision_keys[at][0] = key;
                    decision_keys[at][1] = event_operations;
                    decisions[number - 1][0] = key;
                    decisions[number - 1][1] = event_operations;
                } else {
                    number = K_UNNUMBERED + 1;
                }
            }
            out_decisions[i] = number - 1;
            if (level >= LEVEL_FULL) {
                out_stories[i] = story;
                out_values[i] = seen;
            }
        }
    }
}
