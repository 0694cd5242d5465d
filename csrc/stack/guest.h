// The guest's library: connections without sockets. One thread; nothing blocks but the attaching.
//
//   Guest guest("HOST.sock");
//   const uint32_t slot = guest.connect(address, port);
//   guest.poll([&](const Event& event) { ... });   // whenever guest.descriptor() is readable
//
// There are no borders between frames: what is put before a flush may come in one piece.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "messages.h"
#include "region.h"

namespace specedge::stack {

constexpr Sizes kGuestSizes{.control = 1024, .data = 1024, .arena_bytes = 1 << 20};

struct Event {
  enum class Kind { connected, listening, accepted, data, end, closed, writable, lost };
  Kind kind{};
  uint32_t slot = 0;
  uint32_t listener = 0;           // accepted: whose
  Address address{};               // connected, accepted: the peer's
  uint16_t port = 0;               // listening: the one that is reserved
  uint8_t status = 0;              // closed: why, see element.h
  bool is_direct = false;          // connected, accepted: by a memory of its own
  std::string_view bytes{};        // data: until the visitor returns
  std::string_view certificate{};  // connected: SHA-256 of the peer's, with TLS
};
using Visitor = std::function<void(const Event&)>;

class Guest {
 public:
  // Attach to the daemon at a path. Throws std::system_error, or std::runtime_error with a
  // sentence.
  explicit Guest(const std::string& path, Sizes sizes = kGuestSizes);

  // The slot of a connection, or port, to come. terms: of TLS, see link.h. Throws
  // std::runtime_error when all slots are in use.
  uint32_t connect(const Address& address, uint16_t port, const std::string& terms = {});
  uint32_t listen(const Address& address, uint16_t port, const std::string& terms = {});
  void renew(uint32_t listener, const std::string& terms);  // for those who come from now on
  // Open the port; `backlog` slots are kept ready for those who come.
  void accept(uint32_t listener, uint32_t backlog = 64);

  // Bytes taken, perhaps 0; if not all, `writable` says when more can be.
  size_t send_frame(uint32_t slot, std::string_view bytes);
  // The same, but shown with the next flush or poll: many cost one bell.
  size_t put_frame(uint32_t slot, std::string_view bytes);
  // Room to write up to `wanted` bytes in place, in one piece; if it is empty, `writable` says when
  // there is some, unless the slot sends no more. `put` is of what was written there, from its
  // beginning on, and is shown as a frame is.
  std::span<char> room(uint32_t slot, size_t wanted);
  void put(uint32_t slot, size_t bytes);
  void flush();
  void end(uint32_t slot);    // nothing more will be sent
  void close(uint32_t slot);  // when what was taken is sent; `closed` will tell
  void abort(uint32_t slot);
  void pause(uint32_t slot);  // no more data, for now
  void resume(uint32_t slot);

  // What has happened. From within the visitor everything but poll may be called.
  void poll(const Visitor& visit);
  // Wait until there is something to poll for, at most so long (-1: any time). With spin_ns it
  // looks by itself for so long first, as long as that finds something, and needs no bell until
  // the next wait: then its descriptor says nothing.
  void wait(int timeout_ms, int64_t spin_ns = 0);
  int descriptor() const { return epoll_.get(); }
  // Leave the daemon, and with it all connections; what was taken is still sent.
  void detach();

 private:
  // A memory shared with a guest of this host.
  struct Direct {
    Region region;
    DataProducer out;
    DataConsumer in;
    Descriptor bell, peer_bell;
    bool is_peer_gone = false;
  };
  struct Slot {
    enum class State : uint8_t { free, connecting, listening, offered, open, closing };
    State state = State::free;
    bool is_blocked = false, has_ended = false, is_paused = false;
    bool is_over = false;  // nothing more is sent
    bool ends = false;     // and a guest of this host is still to be told
    bool is_unshown = false;
    uint16_t generation = 0;
    uint32_t listener = 0;
    uint32_t unacknowledged = 0;
    std::unique_ptr<Direct> direct;
    std::string certificate;
    bool sends() const { return state == State::open && !is_over; }
  };

  uint32_t take_slot(Slot::State state);
  void send_terms(uint32_t slot, const std::string& terms);  // throws std::system_error
  uint32_t begin(Op op, Slot::State state, const Address& address, uint16_t port,
                 const std::string& terms);
  void free_slot(uint32_t slot);
  void job(const Element& element);
  void control(const Element& element);  // by the send ring, behind what was sent
  void block(uint32_t slot);
  void end_direct(uint32_t slot);
  void offer(uint32_t listener);
  void hear();
  void add_direct(Message& message);
  void collect(int timeout_ms);
  void completions(const Visitor& visit);
  void complete(const Element& element, const Visitor& visit);
  void receive(const Element& element, const Visitor& visit);
  void read_direct(uint32_t slot, const Visitor& visit);
  void end_of(uint32_t slot, const Visitor& visit);
  void unblock(const Visitor& visit);
  void lose(const Visitor& visit);
  static void fetch(const Direct& from);
  bool has_news();
  void give_room();
  bool spin(int64_t most_ns);
  void set_awake(bool awake);

  Descriptor socket_, epoll_, daemon_bell_, own_bell_;
  Region region_;
  Producer jobs_;
  DataProducer sends_;
  Consumer completions_;
  DataConsumer receives_;
  std::deque<Element> jobs_waiting_, controls_waiting_;
  std::vector<Slot> slots_;  // with room for all: none is ever moved
  std::vector<uint32_t> free_, directs_, stirred_, blocked_;
  std::vector<uint32_t> unshown_;  // to whose peers something was put since the last flush
  bool is_lost_ = false, is_told_ = false;
  bool is_awake_ = false;  // it looks again before it waits, and needs no bell
  bool has_looked_ = false;
  uint32_t polls_ = 0, fruitless_spins_ = 0, waits_to_sleep_ = 0;
};

// Ask the daemon at a path, as its operator. Throws as Guest does.
std::string ask_daemon(const std::string& path, Kind kind, const std::string& text = {});

}  // namespace specedge::stack
