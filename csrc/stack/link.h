// One connection as a stack module carries it. Bytes in order; nothing blocks.
#pragma once
#include <sys/types.h>

#include <memory>
#include <string>

#include "element.h"
#include "messages.h"

namespace specedge::stack {

// What a network does to the bytes of either direction.
struct Shape {
  int64_t delay_ns = 0;    // one way
  double bytes_per_s = 0;  // 0: no limit
  double loss = 0;         // the share of segments that come one retransmission later
  bool is_none() const { return !delay_ns && !bytes_per_s && !loss; }
};

class Link {
 public:
  virtual ~Link() = default;
  virtual int descriptor() const = 0;
  // 0 while it is being made, 1 once it stands, negative: a status.
  virtual int open() = 0;
  // Bytes taken, 0 when none can be now, negative: a status.
  virtual ssize_t write(const char* data, size_t size) = 0;
  // Bytes read, 0 at the end, kNothing when there are none yet, otherwise negative: a status.
  virtual ssize_t read(char* data, size_t size) = 0;
  // Whether a read of less than there was room for has taken all there is: the descriptor will say
  // when there is more, unless it has said that the peer has ended.
  virtual bool is_emptied_by_a_short_read() const { return false; }
  // Move on what it holds itself; negative: a status.
  virtual ssize_t push() { return 0; }
  // Nothing more will be written. False: call again once the descriptor, or the time, is ready.
  virtual bool end() = 0;
  // When it has something to do although the descriptor is silent.
  virtual int64_t due_ns() const { return kNever; }
  // Of the peer's certificate, 32 bytes; empty without TLS.
  virtual std::string certificate() const { return {}; }
};

constexpr ssize_t kNothing = -1000;

int64_t now_ns();

// A stream socket of the kernel: TCP, or a Unix socket. `is_open`: it was accepted.
std::unique_ptr<Link> socket_link(Descriptor socket, bool is_open);
std::unique_ptr<Link> emulated_link(std::unique_ptr<Link> link, Shape shape, uint64_t seed);

// The modules' ways to a socket; throw std::system_error.
Descriptor connect_tcp(const Address& address, uint16_t port);
Descriptor bind_tcp(const Address& address, uint16_t& port);
Descriptor connect_unix(const std::string& path);
Descriptor bind_unix(const std::string& path);
// Whether a path is a socket that nobody has any more, as a daemon that was killed leaves it.
bool is_left_over(const std::string& path);
Descriptor accept_socket(int listener, Address& address, uint16_t& port);

// TLS 1.3, ended in the daemon.
class Tls {
 public:
  virtual ~Tls() = default;
  virtual std::unique_ptr<Link> over(Descriptor socket, bool is_open) = 0;
};
// What a guest's terms mean: "server\n" and its certificate and key in PEM, or "client\n", the
// server's name, "\n", and whom it trusts: "system", "pinned" (the guest compares the hash itself)
// or authorities in PEM. Null: they mean nothing, `status` says why.
std::unique_ptr<Tls> make_tls(const std::string& terms, uint8_t& status);

}  // namespace specedge::stack
