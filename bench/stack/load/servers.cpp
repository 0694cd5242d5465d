// What answers, by sockets of its own or as a guest, and what only takes.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>

#include "load.h"

namespace load {

namespace {

void watch(int epoll, int descriptor, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = descriptor;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event)) fail("epoll");
}

Descriptor listen_anywhere(uint16_t& port) {
  Descriptor made(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof name;
  auto* address = reinterpret_cast<sockaddr*>(&name);
  if (bind(made.get(), address, size) || listen(made.get(), 4096) ||
      getsockname(made.get(), address, &size))
    fail("a port");
  port = ntohs(name.sin_port);
  return made;
}

// Of every connection, `take` what has come; false: it has ended. Until the standard input ends.
void serve(const std::function<bool(int)>& take) {
  uint16_t port = 0;
  const Descriptor listener = listen_anywhere(port), epoll(epoll_create1(0));
  watch(epoll.get(), listener.get(), EPOLLIN);
  watch(epoll.get(), STDIN_FILENO, EPOLLIN);
  print("port", port);
  std::fflush(stdout);
  epoll_event events[256];
  for (;;) {
    const int count = epoll_wait(epoll.get(), events, 256, -1);
    for (int i = 0; i < count; ++i) {
      const int descriptor = events[i].data.fd;
      if (descriptor == STDIN_FILENO) return print("cpu_s", cpu_s());
      if (descriptor != listener.get()) {
        if (!take(descriptor)) close(descriptor);
        continue;
      }
      for (;;) {
        const int made = accept4(descriptor, nullptr, nullptr, SOCK_NONBLOCK);
        if (made < 0) break;
        const int yes = 1;
        setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        watch(epoll.get(), made, EPOLLIN);
      }
    }
  }
}

}  // namespace

void echo_sockets() {
  serve([](int socket) {
    static char buffer[1 << 16];
    const ssize_t got = recv(socket, buffer, sizeof buffer, 0);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    return send(socket, buffer, size_t(got), MSG_NOSIGNAL) == got;
  });
}

void sink() {
  serve([](int socket) {
    static char buffer[1 << 18];
    const ssize_t got = recv(socket, buffer, sizeof buffer, 0);
    return got > 0 || (got < 0 && errno == EAGAIN);
  });
}

void echo_guest(const std::string& path) {
  Listening listening(path, 512);
  Guest& guest = listening.guest;
  print("port", listening.port);
  std::fflush(stdout);
  const Descriptor epoll(epoll_create1(0));
  watch(epoll.get(), guest.descriptor(), EPOLLIN);
  watch(epoll.get(), STDIN_FILENO, EPOLLIN);
  epoll_event events[2];
  for (;;) {
    const int count = epoll_wait(epoll.get(), events, 2, -1);
    for (int i = 0; i < count; ++i)
      if (events[i].data.fd == STDIN_FILENO) return print("cpu_s", cpu_s());
    guest.poll([&](const Event& event) {
      if (event.kind == Event::Kind::data) {
        if (guest.put_frame(event.slot, event.bytes) != event.bytes.size()) fail("no room");
      } else if (event.kind == Event::Kind::end) {
        guest.close(event.slot);
      }
    });
    guest.flush();
  }
}

}  // namespace load
