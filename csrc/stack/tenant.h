// A guest as the daemon sees it: its memory, which is not trusted, and its connections.
//
// Jobs and what is sent are taken one element at a time, each copied before it is checked. What
// there is to tell a guest that does not listen is kept as bits of its connections, so that it
// costs no memory. What breaks a rule of element.h ends the guest and nobody else.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <string>

#include "link.h"
#include "region.h"
#include "shares.h"

namespace specedge::stack {

class Tenant;

enum class Module { shm, unix_socket, tcp, emulated };

// A slot of some tenant, which may have gone.
struct Place {
  uint32_t tenant = 0;
  uint32_t slot = 0;
};

// What a tenant's descriptor is: that of a slot, or one of these.
constexpr uint32_t kSocket = ~0u, kBell = ~1u;

// What a tenant needs of the daemon.
class Host {
 public:
  virtual ~Host() = default;
  // Until it is closed; throws std::system_error.
  virtual void watch(int descriptor, Place place) = 0;
  virtual void unwatch(int descriptor) = 0;
  virtual void wake_at(int64_t due_ns, Place place) = 0;
  virtual void activate(Tenant& tenant) = 0;  // it has work
  virtual Tenant* find(uint32_t tenant) = 0;
  // The port of a guest of this host that listens there, if one does.
  virtual Place* listener_at(const Address& address, uint16_t port) = 0;
  virtual void listens(const Address& address, uint16_t port, Place place) = 0;
  virtual void listens_no_more(Place place) = 0;
  virtual Module module() const = 0;
  virtual const Shape& shape() const = 0;
  virtual std::string unix_path(uint16_t port) const = 0;
};

struct Listener {
  Descriptor tcp, local;
  std::string local_path;
  std::unique_ptr<Tls> tls;
  bool is_open = false;
  std::deque<uint32_t> offered;  // slots for connections to come
  std::deque<Place> waiting;     // guests of this host that connect
};

struct Connection {
  enum class State : uint8_t {
    free,
    offered,
    connecting,
    shaking,
    listening,
    open,
    closing,
    closed
  };
  enum Tell : uint8_t { kConnected = 1, kListening = 2, kAccepted = 4, kSent = 8, kEnd = 16 };

  State state = State::free;
  uint8_t tell = 0;                         // what the guest does not know yet
  uint8_t status = 0;                       // why it was closed
  bool is_queued = false, is_told = false;  // it stands in the lines ready_ and telling_
  bool is_readable = true, is_writable = true, is_paused = false, has_ended = false, ends = false;
  bool is_direct = false, is_local = false;
  bool is_peer_over = false;  // its end may come behind what is read
  std::unique_ptr<Link> link;
  std::unique_ptr<Tls> tls;
  std::unique_ptr<Listener> listener;
  std::string unsent;  // what the link has not taken
  size_t unsent_from = 0;
  uint32_t unreported = 0;       // bytes taken that the guest was not told of
  int64_t deadline_ns = kNever;  // of a handshake, or of what is left to send
  int64_t alarm_ns = kNever;     // when it will be looked at again
  Address address{};
  uint16_t port = 0;
  uint16_t generation = 0;
  Place peer;  // offered, shaking: the listener; direct: the other end

  size_t unsent_bytes() const { return unsent.size() - unsent_from; }
};

class Tenant : public Sender {
 public:
  Tenant(uint32_t id, std::string user, Descriptor socket, Host& host);
  ~Tenant() override;

  uint32_t id() const { return id_; }
  const std::string& user() const { return user_; }
  int socket() const { return socket_.get(); }
  bool is_attached() const { return bool(own_bell_); }
  bool is_active = false;    // it is in the daemon's line of those with work
  bool may_operate = false;  // it may say what the operator may
  // Of its socket, before its next job: the terms that this needs were sent before it, but a job
  // may be seen sooner.
  enum class Hearing : uint8_t { none, due, done } hearing = Hearing::none;
  int64_t greeting_until_ns = kNever;
  const std::string& fault() const { return fault_; }  // why it is to be put out
  void put_out(const std::string& why) {
    fault_ = why;
    host_.activate(*this);
  }

  void attach(Sizes sizes);  // share a memory with it; throws std::system_error
  void keep_terms(uint32_t slot, std::string text);
  // So says its descriptor; is_over: the peer has ended, or the connection.
  void ready(uint32_t slot, bool readable, bool writable, bool is_over = false);
  void alarm(uint32_t slot);  // its time has come
  bool work();                // jobs and connections; whether there is more to do
  bool wants_to_send();       // whether a turn of Shares would do anything
  void tell();                // completions, what was read, the bell
  void last_words();          // what a guest that has gone still had to send
  void move_away();           // close what goes by a module that is no longer used

  uint32_t next_bytes() override;
  void send_next() override;

  size_t connections() const;
  size_t held_bytes() const { return held_bytes_; }
  uint64_t elements() const { return elements_; }

 private:
  using State = Connection::State;

  Connection* at(uint32_t slot);          // null: out of range
  Connection* fresh(const Element& job);  // null, and put out: it is in use
  bool lacks_terms(const Element& job) const;
  void do_job(const Element& job);
  void connect(const Element& job);
  void connect_direct(uint32_t slot, Place listener);
  bool has_local(Place at_port);
  void listen(const Element& job);
  void accept(const Element& job);
  void open_port(Connection& listening, uint32_t slot);
  void accept_some(uint32_t slot);
  void take_in(Listener& listener, uint32_t slot, Descriptor socket, Place from);
  void refuse_waiting(Listener& listener);
  void turn(uint32_t slot);
  void shake_hands(uint32_t slot);
  void opened(uint32_t slot);
  void flush(uint32_t slot);
  void read_some(uint32_t slot);
  void take_data(const Element& element);
  void close(uint32_t slot, uint8_t status);
  void offer_again(uint32_t slot);
  void note(uint32_t slot, uint8_t tell);
  void queue(uint32_t slot);
  void wake(uint32_t slot, int64_t due_ns);
  void clear(uint32_t slot);
  bool tell_of(uint32_t slot);
  bool get_tls(const Element& job, std::unique_ptr<Tls>& tls);
  std::unique_ptr<Link> shaped(std::unique_ptr<Link> link);
  static bool join(Tenant& one, uint32_t slot, Tenant& other, uint32_t other_slot);

  const uint32_t id_;
  const std::string user_;
  std::string fault_;
  Descriptor socket_, own_bell_, guest_bell_;
  Host& host_;
  Region region_;
  Consumer jobs_;
  DataConsumer sends_;
  Producer completions_;
  DataProducer receives_;
  std::deque<Connection> connections_;
  std::map<uint32_t, std::string> terms_;
  std::deque<uint32_t> ready_, telling_;
  std::deque<uint32_t> starved_;  // that could be read, but the guest has no room
  size_t held_bytes_ = 0;
  uint64_t elements_ = 0;
};

}  // namespace specedge::stack
