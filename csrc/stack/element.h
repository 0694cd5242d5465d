// The network stack as a module (after NetKernel, arXiv:1903.07119): one daemon a host has the
// sockets; guests, the processes that want connections, have none.
//
//   guest                            shared memory                               daemon
//   connect, listen, close ...  ──▶  job ring         ──▶  Tenant: checks, connection table
//   connected, accepted, sent   ◀──  completion ring  ◀──
//   bytes to send               ──▶  send ring + arena ──▶  Shares: whose turn it is, by user
//   bytes that came             ◀──  receive ring + arena ◀──  Link: TCP, Unix socket, TLS,
//   emulated
//
// A guest attaches over a Unix socket and is passed one sealed memfd and two eventfds, the bells.
// Two guests of one host may be given a memory of their own instead of a link (module shm): a send
// and a receive ring that cross over, with no daemon in between. Every ring has one producer and
// one consumer. Each side keeps its own position to itself, reads what the other writes once, and
// believes neither a position nor an element before it was checked: who writes nonsense is put out
// alone.
// A slot is the guest's number for a connection; the guest chooses it, for those that it accepts
// too, and may use it again once `closed` has come.
#pragma once
#include <array>
#include <cstdint>
#include <limits>

namespace specedge::stack {

constexpr uint32_t kVersion = 4;
constexpr uint32_t kFrameBytes = 64 << 10;    // the longest payload of an element
constexpr uint32_t kInsideBytes = 48;         // of these, the most that travel in the ring itself
constexpr uint32_t kWindowBytes = 256 << 10;  // that the daemon holds of what one slot sends
constexpr uint32_t kMaxSlots = 1 << 14;       // of a guest
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

enum class Op : uint8_t {
  // Jobs. connect and listen: address, port; flag kTls: the terms have come over the socket.
  // connect, listen, accept: length, the slot's generation, by which what is still sent for the
  // slot's last connection is known.
  connect = 1,
  listen,  // reserves the port; it opens with the first accept
  accept,  // the slot for one connection more; value: the listener's slot
  abort,   // close at once; what waits to be sent is dropped
  pause,   // read no more of this slot
  resume,  // read on
  // Completions. A slot that fails says so with `closed`.
  connected,  // flag kDirect: by a memory of its own, which has come over the socket
  listening,  // port: the one that is reserved; and once more when it is open
  accepted,   // address, port: the peer's; flags as in connected
  sent,       // length: bytes that the link has taken
  // Send and receive rings. Sent: port, the generation.
  data,    // value, length: bytes in the arena of this direction
  end,     // no more data will come in this direction
  closed,  // sent: close, once everything is written. Received: the slot is free; value: why
};

constexpr uint8_t kTls = 1, kDirect = 2;  // flags
constexpr uint8_t kInsideFlag = 4;        // data: the bytes are in the ring, beside the element
constexpr uint8_t kPhaseFlag = 0x80;      // whose meaning turns with every lap, see ring.h

// Why a slot was closed: an errno below 200, or one of these.
enum Status : uint8_t {
  kMoved = 200,       // the operator has chosen another module
  kNoTls = 201,       // the peer speaks no TLS
  kUntrusted = 202,   // its certificate is not trusted
  kTlsFailed = 203,   // any other failure of TLS
  kTlsMissing = 204,  // the daemon was built without OpenSSL
  kBadTerms = 205,    // certificate, key or authority cannot be used
};

using Address = std::array<uint8_t, 16>;  // IPv6; of IPv4 ::ffff:a.b.c.d

struct Element {
  Op op{};
  uint8_t flags = 0;
  uint16_t port = 0;
  uint32_t slot = 0;
  uint32_t value = 0;  // data: offset in the arena; accept: the listener's slot; closed: the status
  uint32_t length = 0;
  Address address{};
};
static_assert(sizeof(Element) == 32);

}  // namespace specedge::stack
