// load PROGRAM ARGUMENTS...: see load.h; python -m bench.stack runs them.
#include <sys/resource.h>

#include <csignal>
#include <exception>

#include "load.h"

namespace load {

Listening::Listening(const std::string& path, uint32_t backlog) : guest(path) {
  const auto until_heard = [&] {
    for (bool is_heard = false; !is_heard;) {
      guest.wait(1000);
      guest.poll([&](const Event& event) {
        if (event.kind == Event::Kind::closed) fail("the daemon gives no port");
        is_heard |= event.kind == Event::Kind::listening;
        port = event.port;
      });
    }
  };
  listener = guest.listen(kLoopback, 0);
  until_heard();  // it is reserved
  guest.accept(listener, backlog);
  until_heard();  // it is open
}

uint32_t Listening::accept() {
  for (uint32_t slot = ~0u;;) {
    guest.wait(1000);
    guest.poll([&](const Event& event) {
      if (event.kind == Event::Kind::accepted) slot = event.slot;
    });
    if (slot == ~0u) continue;
    guest.send_frame(slot, "!");
    return slot;
  }
}

uint32_t connect(Guest& guest, uint16_t port) {
  const uint32_t slot = guest.connect(kLoopback, port);
  for (bool stands = false; !stands;) {
    guest.wait(1000);
    guest.poll([&](const Event& event) {
      if (event.kind == Event::Kind::closed) fail("the daemon does not connect");
      stands |= event.kind == Event::Kind::connected && event.slot == slot;
    });
  }
  return slot;
}

uint32_t connect_and_see(Guest& guest, uint16_t port) {
  uint32_t slot = guest.connect(kLoopback, port);
  for (bool is_seen = false; !is_seen;) {
    guest.wait(1000);
    guest.poll([&](const Event& event) {
      if (event.kind == Event::Kind::closed) fail("the daemon does not connect");
      is_seen |= event.kind == Event::Kind::data;
    });
  }
  return slot;
}

namespace {

void run(const std::vector<std::string>& words) {
  const auto is = [&](const char* name, size_t count) {
    return words.size() == count + 1 && words[0] == name;
  };
  const auto number = [&](size_t i) { return std::stod(words[i]); };
  const auto whole = [&](size_t i) { return int(number(i)); };
  if (is("rings", 4)) return rings(words[1], words[2], whole(3), number(4));
  if (is("round_trips", 3)) return round_trips(words[1], words[2], number(3));
  if (is("stream", 4)) return stream(words[1], words[2], size_t(whole(3)), number(4));
  if (is("echo_sockets", 0)) return echo_sockets();
  if (is("echo_guest", 1)) return echo_guest(words[1]);
  if (is("sink", 0)) return sink();
  if (is("requests", 5))
    return requests(whole(1), whole(2), number(3), size_t(whole(4)), number(5));
  if (is("guest_requests", 6))
    return guest_requests(words[1], whole(2), whole(3), number(4), size_t(whole(5)), number(6));
  if (is("flood", 3)) return flood(words[1], whole(2), whole(3));
  fail("no such program");
}

}  // namespace

}  // namespace load

int main(int argc, char** argv) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    load::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    load::fail(error.what());
  }
}
