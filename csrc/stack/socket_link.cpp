// Module TCP and module Unix socket: the kernel's streams.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <system_error>

#include "link.h"

namespace specedge::stack {

namespace {

// As runtime/wire/tcp.py sets them: a dead link is noticed after about 20 s.
void set_options(int socket) {
  const auto set = [socket](int level, int name, int value) {
    setsockopt(socket, level, name, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 20'000);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

[[noreturn]] void fail() { throw std::system_error(errno, std::generic_category()); }

struct Name {
  sockaddr_storage bytes{};
  socklen_t size = sizeof(sockaddr_storage);
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&bytes); }
};

constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
bool is_mapped(const Address& address) { return !std::memcmp(address.data(), kMapped, 12); }

Name name_of(const Address& address, uint16_t port) {
  Name name;
  if (is_mapped(address)) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&name.bytes);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    std::memcpy(&v4->sin_addr, address.data() + 12, 4);
    name.size = sizeof *v4;
  } else {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&name.bytes);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    std::memcpy(&v6->sin6_addr, address.data(), 16);
    name.size = sizeof *v6;
  }
  return name;
}

// A peer by a Unix socket is of this host.
void read_name(Name& name, Address& address, uint16_t& port) {
  address = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
  port = 0;
  if (name.bytes.ss_family == AF_INET) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&name.bytes);
    std::memcpy(address.data() + 12, &v4->sin_addr, 4);
    port = ntohs(v4->sin_port);
  } else if (name.bytes.ss_family == AF_INET6) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&name.bytes);
    std::memcpy(address.data(), &v6->sin6_addr, 16);
    port = ntohs(v6->sin6_port);
  }
}

Name unix_name(const std::string& path) {
  Name name;
  auto* local = reinterpret_cast<sockaddr_un*>(&name.bytes);
  if (path.size() >= sizeof local->sun_path) {
    errno = ENAMETOOLONG;
    fail();
  }
  local->sun_family = AF_UNIX;
  std::memcpy(local->sun_path, path.c_str(), path.size() + 1);
  name.size = sizeof *local;
  return name;
}

Descriptor new_socket(int family) {
  Descriptor made(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made) fail();
  return made;
}

Descriptor connect_to(Name name) {
  Descriptor made = new_socket(name.bytes.ss_family);
  if (name.bytes.ss_family != AF_UNIX) set_options(made.get());
  if (connect(made.get(), name.get(), name.size) && errno != EINPROGRESS) fail();
  return made;
}

class SocketLink : public Link {
 public:
  SocketLink(Descriptor socket, bool is_open) : socket_(std::move(socket)), is_open_(is_open) {}
  int descriptor() const override { return socket_.get(); }

  int open() override {
    if (is_open_) return 1;
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) return -error;
    Name peer;
    is_open_ = !getpeername(socket_.get(), peer.get(), &peer.size);
    return is_open_;
  }

  ssize_t write(const char* data, size_t size) override {
    const ssize_t taken = send(socket_.get(), data, size, MSG_NOSIGNAL);
    if (taken >= 0) return taken;
    return errno == EAGAIN || errno == EINTR ? 0 : -errno;
  }

  ssize_t read(char* data, size_t size) override {
    const ssize_t got = recv(socket_.get(), data, size, 0);
    if (got >= 0) return got;
    return errno == EAGAIN || errno == EINTR ? kNothing : -errno;
  }

  bool is_emptied_by_a_short_read() const override { return true; }

  bool end() override {
    shutdown(socket_.get(), SHUT_WR);
    return true;
  }

 private:
  Descriptor socket_;
  bool is_open_;
};

}  // namespace

int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

std::unique_ptr<Link> socket_link(Descriptor socket, bool is_open) {
  return std::make_unique<SocketLink>(std::move(socket), is_open);
}

Descriptor connect_tcp(const Address& address, uint16_t port) {
  return connect_to(name_of(address, port));
}

Descriptor connect_unix(const std::string& path) { return connect_to(unix_name(path)); }

Descriptor bind_tcp(const Address& address, uint16_t& port) {
  Name name = name_of(address, port);
  Descriptor made = new_socket(name.bytes.ss_family);
  const int yes = 1, no = 0;
  if (setsockopt(made.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes)) fail();
  if (name.bytes.ss_family == AF_INET6) {
    const bool is_any = std::all_of(address.begin(), address.end(), [](auto b) { return !b; });
    if (setsockopt(made.get(), IPPROTO_IPV6, IPV6_V6ONLY, is_any ? &no : &yes, sizeof yes)) fail();
  }
  if (bind(made.get(), name.get(), name.size)) fail();
  Name bound;
  if (getsockname(made.get(), bound.get(), &bound.size)) fail();
  Address unused;
  read_name(bound, unused, port);
  return made;
}

Descriptor bind_unix(const std::string& path) {
  Name name = unix_name(path);
  Descriptor made = new_socket(AF_UNIX);
  if (is_left_over(path)) unlink(path.c_str());
  if (bind(made.get(), name.get(), name.size)) fail();
  return made;
}

bool is_left_over(const std::string& path) {
  struct stat there;
  if (lstat(path.c_str(), &there) || !S_ISSOCK(there.st_mode)) return false;
  // Of another type than the sockets here: who has the name is not connected to, and still told.
  const Descriptor probe(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  Name name = unix_name(path);
  return probe && connect(probe.get(), name.get(), name.size) && errno == ECONNREFUSED;
}

Descriptor accept_socket(int listener, Address& address, uint16_t& port) {
  Name peer;
  Descriptor made(accept4(listener, peer.get(), &peer.size, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!made) return made;
  if (peer.bytes.ss_family != AF_UNIX) set_options(made.get());
  read_name(peer, address, port);
  return made;
}

}  // namespace specedge::stack
