// SPDX-License-Identifier: Apache-2.0
// Mutexes that clang can check: a field says which one guards it, a function which one it
// wants held, and `make lint` holds the code to both.
#pragma once

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define PYVATTN_THREAD_SAFETY(x) __attribute__((x))
#else
#define PYVATTN_THREAD_SAFETY(x)
#endif

#define CAPABILITY(name) PYVATTN_THREAD_SAFETY(capability(name))
#define SCOPED_CAPABILITY PYVATTN_THREAD_SAFETY(scoped_lockable)
// Of a field: only with the mutex held.
#define GUARDED_BY(mutex) PYVATTN_THREAD_SAFETY(guarded_by(mutex))
// Of what a pointer points to.
#define PT_GUARDED_BY(mutex) PYVATTN_THREAD_SAFETY(pt_guarded_by(mutex))
// Of a function: its caller holds the mutex, before and after.
#define REQUIRES(...) PYVATTN_THREAD_SAFETY(requires_capability(__VA_ARGS__))
// Its caller does not hold the mutex.
#define EXCLUDES(...) PYVATTN_THREAD_SAFETY(locks_excluded(__VA_ARGS__))
// Of a function that is held to nothing, for a reason that it states.
#define NO_THREAD_SAFETY_ANALYSIS PYVATTN_THREAD_SAFETY(no_thread_safety_analysis)
#define ACQUIRE(...) PYVATTN_THREAD_SAFETY(acquire_capability(__VA_ARGS__))
#define RELEASE(...) PYVATTN_THREAD_SAFETY(release_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) PYVATTN_THREAD_SAFETY(try_acquire_capability(__VA_ARGS__))

namespace pyvattn {

class CAPABILITY("mutex") Mutex {
 public:
  void lock() ACQUIRE() { mutex_.lock(); }
  void unlock() RELEASE() { mutex_.unlock(); }
  bool try_lock() TRY_ACQUIRE(true) { return mutex_.try_lock(); }

 private:
  friend class Condition;
  std::mutex mutex_;
};

// Holds a mutex until the end of the scope.
class SCOPED_CAPABILITY Lock {
 public:
  explicit Lock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  // Takes over a mutex that the caller has locked.
  Lock(Mutex& mutex, std::adopt_lock_t) REQUIRES(mutex) : mutex_(mutex) {}
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() RELEASE() { mutex_.unlock(); }

 private:
  Mutex& mutex_;
};

// Lets go of a mutex that is held, until the end of the scope.
class SCOPED_CAPABILITY Unlocked {
 public:
  explicit Unlocked(Mutex& mutex) RELEASE(mutex) : mutex_(mutex) { mutex_.unlock(); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() RELEASE() { mutex_.lock(); }

 private:
  Mutex& mutex_;
};

class Condition {
 public:
  // Lets go of the mutex while it waits. May return early: wait in a loop.
  void wait(Mutex& mutex) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    changed_.wait(lock);
    static_cast<void>(lock.release());
  }
  void notify_all() { changed_.notify_all(); }

 private:
  std::condition_variable changed_;
};

}  // namespace pyvattn
