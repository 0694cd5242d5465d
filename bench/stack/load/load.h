// Load for the stack: what sends, echoes and counts, in C++, so that no interpreter is what is
// measured. Every program prints lines of a name and a number.
#pragma once
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "guest.h"

namespace load {

using namespace specedge::stack;

constexpr Address kLoopback = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};

inline int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

// Processor time of this process.
inline double cpu_s() {
  timespec used;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return double(used.tv_sec) + double(used.tv_nsec) * 1e-9;
}

inline void print(const char* name, double value) { std::printf("%s %.9g\n", name, value); }

[[noreturn]] inline void fail(const std::string& why) {
  std::fprintf(stderr, "load: %s\n", why.c_str());
  std::exit(1);
}

// One processor of those that this process may use, where there are several.
inline void pin(int number) {
  cpu_set_t allowed, one;
  sched_getaffinity(0, sizeof allowed, &allowed);
  CPU_ZERO(&one);
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed) && seen++ == number) CPU_SET(cpu, &one);
  if (CPU_COUNT(&one)) sched_setaffinity(0, sizeof one, &one);
}

// A process that does this and ends.
class Child {
 public:
  explicit Child(const std::function<void()>& run) : pid_(fork()) {
    if (pid_) return;
    run();
    std::fflush(stdout);
    _exit(0);
  }
  ~Child() {
    if (pid_ > 0) wait();
  }
  void wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    if (status) fail("a process of the pair has failed");
  }

 private:
  pid_t pid_;
};

// A guest with an open port.
struct Listening {
  Guest guest;
  uint32_t listener;
  uint16_t port = 0;
  explicit Listening(const std::string& path, uint32_t backlog = 8);
  uint32_t accept();  // the slot of who comes first, and is told that it has been seen
};
uint32_t connect(Guest& guest, uint16_t port);          // returns once it stands
uint32_t connect_and_see(Guest& guest, uint16_t port);  // and has been accepted

// The programs.
void rings(const std::string& path, const std::string& kind, int batch, double seconds);
void round_trips(const std::string& path, const std::string& kind, double seconds);
void stream(const std::string& path, const std::string& kind, size_t bytes, double seconds);
void echo_sockets();                       // prints its port; until its input ends
void echo_guest(const std::string& path);  // the same, as a guest
void sink();
void requests(int port, int connections, double seconds, size_t bytes, double rate);
void guest_requests(const std::string& path, int port, int connections, double seconds,
                    size_t bytes, double rate);
void flood(const std::string& path, int port, int connections);

}  // namespace load
