/* SPDX-License-Identifier: Apache-2.0
 *
 * The ledger's protocol, for spin: who may change which word when, with a killer that strikes
 * before any step.  Run by run.py; what stands for what:
 *
 *   own[c]    the owner table of the file: free, cooling, or a process of a slot
 *   gen[s]    the generation in a slot's state word
 *   lock[s]   the kernel's lock on the slot's byte
 *   phys[s]   chunks of device memory that the slot's living process holds
 *   ghost     chunks that dead processes held and the driver has not freed yet: the kernel drops
 *             the lock first, which is the worse order
 *
 * Asserted wherever memory is mapped: all that is held is not more than the device has, so an
 * allocation under a lease does not fail.  With -DPROGRESS: a member below its guarantee gets a
 * chunk, or dies.  With -DLOST: no word stays with the dead.
 *
 * Wrong on purpose, each must fail:
 *   -DNO_GENERATION    words name the slot and not its process
 *   -DNO_CAS           a plain store in place of the compare-and-swap that takes
 *   -DGIVE_MAPPED      a chunk is given before its memory is unmapped
 *   -DNO_COOLING       a dead member's word is free at once
 *   -DSAME_COOLING     all cooling words are alike: one who saw that an earlier one was cold and
 *                      was stopped there frees a later one
 *   -DPROBE_FREE_ONLY  cooling ends when the device has room for the free words, forgetting
 *                      those that are leased and not mapped yet
 *   -DLATE_LOOK        a sweeper takes any word of a slot that was dead a moment ago
 *   -DNO_SWEEP         nobody looks after the dead
 */
#ifndef CHUNKS
#define CHUNKS 2
#endif
#ifndef KILLS
#define KILLS 2
#endif
#define MEMBERS 2
#define GUARANTEE 1

/* A word is free, or odd for a process, or even for one that is dead and whose memory cools. */
#define FREE 0
#ifdef NO_GENERATION
#define WORD(s, g) (1 + 2 * (s))
#else
#define WORD(s, g) (1 + 2 * ((g) * MEMBERS + (s)))
#endif
#define IS_MEMBER(w) ((w) % 2 == 1)
#define IS_COOLING(w) ((w) > 0 && (w) % 2 == 0)
#ifdef SAME_COOLING
#define COOLED(w) 254
#else
#define COOLED(w) ((w) + 1)
#endif
#define SLOT_OF(w) ((((w) - 1) / 2) % MEMBERS)
#define OTHER (1 - me)

byte own[CHUNKS];
byte gen[MEMBERS];
bit lock[MEMBERS];
byte phys[MEMBERS];
byte ghost;
bit killed[MEMBERS];
byte kills;

#define HELD (phys[0] + phys[1] + ghost)
#if CHUNKS == 2
#define COUNT(w) ((own[0] == (w)) + (own[1] == (w)))
#else
#define COUNT(w) ((own[0] == (w)) + (own[1] == (w)) + (own[2] == (w)))
#endif
#define LEASE(s) COUNT(WORD(s, gen[s]))
#define NEEDY(s) (lock[s] && gen[s] > 0 && LEASE(s) < GUARANTEE)

inline swap(chunk, from, to) {
    atomic { if :: own[chunk] == from -> own[chunk] = to :: else fi }
}

/* Sees that a slot's process is dead, then reads a word, then changes it: three steps. */
inline sweep(chunk, slot) {
    atomic { g = gen[slot]; dead = 0 };
    dead = !lock[slot];
    w = own[chunk];
    if
#ifdef LATE_LOOK
    :: IS_MEMBER(w) && SLOT_OF(w) == slot && dead -> fold(chunk)
#else
    :: IS_MEMBER(w) && SLOT_OF(w) == slot && dead && w == WORD(slot, g) -> fold(chunk)
#endif
    :: IS_MEMBER(w) && SLOT_OF(w) == slot && w != WORD(slot, gen[slot]) -> fold(chunk)
    :: else
    fi;
    atomic { g = 0; dead = 0; w = 0 }
}

inline fold(chunk) {
#ifdef NO_COOLING
    swap(chunk, w, FREE)
#else
    swap(chunk, w, COOLED(w))
#endif
}

/* Waiting long enough stands here for knowing that the driver is through. */
inline thaw(chunk) {
    w = own[chunk];
    if
#ifdef PROBE_FREE_ONLY
    :: IS_COOLING(w) && CHUNKS - HELD >= COUNT(FREE) + 1 -> swap(chunk, w, FREE)
#else
    :: IS_COOLING(w) && ghost == 0 -> swap(chunk, w, FREE)
#endif
    :: else
    fi;
    w = 0
}

/* One that is above its guarantee leaves in the pool what others lack. */
inline take() {
    atomic {
        c = 0;
        do
        :: c < CHUNKS && own[c] != FREE -> c++
        :: else -> break
        od;
        if
        :: c < CHUNKS && LEASE(me) >= GUARANTEE && NEEDY(OTHER) && COUNT(FREE) <= GUARANTEE ->
            c = CHUNKS
        :: else
        fi
    };
    if
    :: c < CHUNKS ->
#ifdef NO_CAS
        own[c] = WORD(me, gen[me])
#else
        swap(c, FREE, WORD(me, gen[me]))
#endif
    :: else
    fi;
    c = 0
}

inline map() {
    /* Only this process takes its words away, so the count may be old. */
    if
    :: phys[me] < LEASE(me) -> mine = 1
    :: else
    fi;
    if
    :: mine -> atomic { phys[me]++; assert(HELD <= CHUNKS) }
    :: else
    fi;
    mine = 0
}

inline unmap() {
    if :: phys[me] > 0 -> phys[me]-- :: else fi
}

/* Gives one of its words, to the needy by name. The receiver may be dead by then. */
inline give() {
    atomic {
        w = FREE;
        if :: NEEDY(OTHER) -> w = WORD(OTHER, gen[OTHER]) :: else fi;
        c = 0;
        do
        :: c < CHUNKS && own[c] != WORD(me, gen[me]) -> c++
        :: else -> break
        od
    };
    if
    :: c < CHUNKS ->
#ifndef GIVE_MAPPED
        if :: phys[me] >= LEASE(me) -> phys[me]-- :: else fi;
#endif
        swap(c, WORD(me, gen[me]), w);
#ifdef GIVE_MAPPED
        if :: phys[me] > LEASE(me) -> phys[me]-- :: else fi
#endif
    :: else
    fi;
    atomic { c = 0; w = 0 }
}

inline join() {
    atomic { !lock[me] -> lock[me] = 1 };
    do
    :: c < CHUNKS ->
        w = own[c];
        if :: IS_MEMBER(w) && SLOT_OF(w) == me -> fold(c) :: else fi;
        atomic { w = 0; c++ }
    :: else -> break
    od;
    atomic { c = 0; gen[me]++ }
}

proctype Member(byte me) {
    byte c, w, g;
    bit dead, mine;

born:
    {
        join();
end:    do
        ::
            /* What every member owes: the dead, and those below their guarantee. */
#if (defined(PROGRESS) || defined(LOST)) && !defined(NO_SWEEP)
            sweep(0, OTHER); thaw(0); sweep(1, OTHER); thaw(1);
            sweep(0, me); sweep(1, me);
#endif
            if
            :: LEASE(me) > GUARANTEE && NEEDY(OTHER) -> give()
            :: LEASE(me) < GUARANTEE && COUNT(FREE) > 0 -> take()
            :: else ->
                /* And whatever else it likes. */
                if
                :: true -> take()
                :: true -> map()
                :: true -> unmap()
                :: phys[me] < LEASE(me) && LEASE(me) > GUARANTEE -> give()
#if !defined(PROGRESS) && !defined(LOST) && !defined(NO_SWEEP)
                :: true -> sweep(0, OTHER)
                :: true -> sweep(1, OTHER)
                :: true -> thaw(0)
                :: true -> thaw(1)
#endif
                :: skip
                fi
            fi
        od
    } unless { killed[me] };
    atomic {
        lock[me] = 0; ghost = ghost + phys[me]; phys[me] = 0;
        killed[me] = 0; c = 0; w = 0; g = 0; dead = 0; mine = 0
    };
    if
    :: goto born
    :: skip
    fi
}

/* The driver frees what the dead held, some time. */
active proctype Device() {
end:
    do
    :: atomic { ghost > 0 -> ghost-- }
    od
}

active proctype Killer() {
    byte v;
end:
    do
    :: kills < KILLS ->
        atomic {
            if :: v = 0 :: v = 1 fi;
            if :: lock[v] && !killed[v] -> killed[v] = 1; kills++ :: else fi;
            v = 0
        }
    :: break
    od
}

init {
    atomic { run Member(0); run Member(1) }
}

#define STALE(c) (IS_MEMBER(own[c]) && (!lock[SLOT_OF(own[c])] || \
                  own[c] != WORD(SLOT_OF(own[c]), gen[SLOT_OF(own[c])])))
#ifdef PROGRESS
ltl progress { [] ((lock[0] && gen[0] > 0 && LEASE(0) < 1) -> <> (LEASE(0) >= 1 || !lock[0])) }
#endif
#ifdef LOST
ltl lost { <> [] (!(STALE(0) || STALE(1)) || !(lock[0] || lock[1])) }
#endif
