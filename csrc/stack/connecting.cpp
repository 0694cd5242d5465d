// How a guest's connections come about and end: ports, the modules, guests of one host among
// themselves.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "tenant.h"

namespace specedge::stack {

namespace {
constexpr int64_t kHandshake_ns = 5'000'000'000, kAgain_ns = 100'000'000;
constexpr int kBacklog = 512;
constexpr size_t kWaiting = 128;  // guests of this host at a port
constexpr int kAccepts = 64;      // at a time
}  // namespace

// False: its terms are of no use, and the slot is closed.
bool Tenant::get_tls(const Element& job, std::unique_ptr<Tls>& tls) {
  if (!(job.flags & kTls)) return true;
  uint8_t status = kBadTerms;
  if (const auto found = terms_.find(job.slot); found != terms_.end()) {
    tls = make_tls(found->second, status);
    terms_.erase(found);
  }
  if (tls) return true;
  close(job.slot, status);  // the listener, and `tls` with it, may be gone now
  return false;
}

std::unique_ptr<Link> Tenant::shaped(std::unique_ptr<Link> link) {
  if (host_.module() != Module::emulated || host_.shape().is_none()) return link;
  return emulated_link(std::move(link), host_.shape(), elements_);
}

void Tenant::connect(const Element& job) {
  Connection* c = fresh(job);
  if (!c) return;
  c->state = State::connecting;
  c->address = job.address;
  c->port = job.port;
  if (!get_tls(job, c->tls)) return;
  const Place* found = host_.listener_at(job.address, job.port);
  c->is_local = found != nullptr;
  const Place listener = found ? *found : Place{};
  if (found && host_.module() == Module::shm && !c->tls) {
    Tenant* other = host_.find(listener.tenant);
    if (other && !other->connections_[listener.slot].listener->tls)
      return connect_direct(job.slot, listener);
  }
  try {
    const bool is_unix = found && host_.module() == Module::unix_socket && has_local(listener);
    Descriptor socket =
        is_unix ? connect_unix(host_.unix_path(job.port)) : connect_tcp(job.address, job.port);
    std::unique_ptr<Link> link =
        c->tls ? c->tls->over(std::move(socket), false) : socket_link(std::move(socket), false);
    if (!link) return close(job.slot, kBadTerms);
    // Between guests of this host it is the side that accepts.
    c->link = c->is_local ? std::move(link) : shaped(std::move(link));
    host_.watch(c->link->descriptor(), {id_, job.slot});
  } catch (const std::system_error& error) {
    return close(job.slot, uint8_t(error.code().value()));
  }
  queue(job.slot);
}

// Whether a port has a Unix socket too: its name may be too long, or somebody else's.
bool Tenant::has_local(Place at_port) {
  return bool(host_.find(at_port.tenant)->connections_[at_port.slot].listener->local);
}

void Tenant::connect_direct(uint32_t slot, Place at_port) {
  Tenant& other = *host_.find(at_port.tenant);
  Listener& listener = *other.connections_[at_port.slot].listener;
  if (!listener.is_open || listener.waiting.size() >= kWaiting) return close(slot, ECONNREFUSED);
  connections_[slot].is_direct = true;
  listener.waiting.push_back({id_, slot});
  other.queue(at_port.slot);
  host_.activate(other);
}

void Tenant::listen(const Element& job) {
  Connection* c = fresh(job);
  if (!c) return;
  c->state = State::listening;
  c->address = job.address;
  c->listener = std::make_unique<Listener>();
  if (!get_tls(job, c->listener->tls)) return;
  try {
    c->port = job.port;
    c->listener->tcp = bind_tcp(job.address, c->port);
  } catch (const std::system_error& error) {
    return close(job.slot, uint8_t(error.code().value()));
  }
  host_.listens(c->address, c->port, {id_, job.slot});
  note(job.slot, Connection::kListening);
}

void Tenant::open_port(Connection& listening, uint32_t slot) {
  Listener& listener = *listening.listener;
  listener.is_open = true;
  try {
    if (::listen(listener.tcp.get(), kBacklog))
      throw std::system_error(errno, std::generic_category());
    host_.watch(listener.tcp.get(), {id_, slot});
  } catch (const std::system_error& error) {
    return close(slot, uint8_t(error.code().value()));
  }
  note(slot, Connection::kListening);
  const std::string path = host_.unix_path(listening.port);
  try {
    listener.local = bind_unix(path);
    listener.local_path = path;
    if (::listen(listener.local.get(), kBacklog))
      throw std::system_error(errno, std::generic_category());
    host_.watch(listener.local.get(), {id_, slot});
  } catch (const std::system_error&) {
    listener.local = {};  // the port is there by TCP alone
  }
}

void Tenant::accept(const Element& job) {
  Connection* port = at(job.value);
  if (!port || port->state != State::listening) {
    if (!port) return put_out("it accepts at a port that it does not have");
    if (fresh(job)) close(job.slot, 0);  // the port has been closed meanwhile
    return;
  }
  Connection* c = fresh(job);
  if (!c) return;
  c->state = State::offered;
  c->peer = {id_, job.value};
  port->listener->offered.push_back(job.slot);
  if (!port->listener->is_open) open_port(*port, job.value);
  queue(job.value);
}

void Tenant::accept_some(uint32_t slot) {
  Listener& listener = *connections_[slot].listener;
  int left = kAccepts;
  while (!listener.offered.empty() && !listener.waiting.empty() && left-- > 0) {
    const Place guest = listener.waiting.front();
    listener.waiting.pop_front();
    Tenant* other = host_.find(guest.tenant);
    Connection* theirs = other ? other->at(guest.slot) : nullptr;
    if (!theirs || theirs->state != State::connecting || !theirs->is_direct) continue;
    const uint32_t mine = listener.offered.front();
    if (!join(*other, guest.slot, *this, mine)) continue;
    listener.offered.pop_front();
  }
  for (const Descriptor* socket : {&listener.tcp, &listener.local}) {
    while (*socket && !listener.offered.empty() && left-- > 0) {
      Address address;
      uint16_t port;
      Descriptor made = accept_socket(socket->get(), address, port);
      if (!made) {
        if (errno != EAGAIN) wake(slot, now_ns() + kAgain_ns);
        break;
      }
      Connection& c = connections_[listener.offered.front()];
      c.address = address;
      c.port = port;
      take_in(listener, listener.offered.front(), std::move(made), {id_, slot});
    }
  }
  if (left <= 0) queue(slot);
}

void Tenant::take_in(Listener& listener, uint32_t slot, Descriptor socket, Place from) {
  Connection& c = connections_[slot];
  std::unique_ptr<Link> link = listener.tls ? listener.tls->over(std::move(socket), true)
                                            : socket_link(std::move(socket), true);
  if (!link) return;
  try {
    host_.watch(link->descriptor(), {id_, slot});
  } catch (const std::system_error&) {
    return;  // hung up on
  }
  listener.offered.pop_front();
  c.link = std::move(link);
  c.state = State::shaking;
  c.peer = from;
  wake(slot, c.deadline_ns = now_ns() + kHandshake_ns);
  queue(slot);
}

// A memory of their own for two guests. False: the listener's side could not be told.
bool Tenant::join(Tenant& one, uint32_t slot, Tenant& other, uint32_t other_slot) {
  Connection &mine = one.connections_[slot], &theirs = other.connections_[other_slot];
  try {
    Descriptor memory(Region::make(kDirectSizes)), bell(make_bell()), other_bell(make_bell());
    const int to_one[] = {memory.get(), bell.get(), other_bell.get()};
    const int to_other[] = {memory.get(), other_bell.get(), bell.get()};
    Header header{.kind = Kind::direct, .slot = other_slot, .is_first = 0, .sizes = kDirectSizes};
    if (!send_message(other.socket(), header, {}, to_other)) {
      other.put_out("it does not read its socket");
      one.close(slot, ECONNREFUSED);
      return false;
    }
    header.slot = slot;
    header.is_first = 1;
    if (!send_message(one.socket(), header, {}, to_one)) one.put_out("it does not read its socket");
  } catch (const std::system_error& error) {
    one.close(slot, uint8_t(error.code().value()));
    return false;
  }
  theirs.address = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
  theirs.state = mine.state = State::open;
  theirs.is_direct = mine.is_direct = true;
  theirs.peer = {one.id_, slot};
  mine.peer = {other.id_, other_slot};
  one.note(slot, Connection::kConnected);
  other.note(other_slot, Connection::kAccepted);
  return true;
}

void Tenant::turn(uint32_t slot) {
  Connection& c = connections_[slot];
  const bool is_late = c.deadline_ns != kNever && now_ns() >= c.deadline_ns;
  switch (c.state) {
    case State::listening:
      return accept_some(slot);
    case State::connecting:
    case State::shaking:
      if (is_late) return c.state == State::shaking ? offer_again(slot) : close(slot, ETIMEDOUT);
      return shake_hands(slot);
    case State::open:
    case State::closing:
      if (is_late) return close(slot, ETIMEDOUT);
      flush(slot);
      read_some(slot);
      return wake(slot, c.deadline_ns);
    default:
      return;
  }
}

void Tenant::shake_hands(uint32_t slot) {
  Connection& c = connections_[slot];
  if (!c.link) return;  // a guest of this host, that waits at a port
  const int done = c.link->open();
  if (done < 0) return c.state == State::shaking ? offer_again(slot) : close(slot, uint8_t(-done));
  if (!done) return;
  if (c.state == State::shaking) c.link = shaped(std::move(c.link));
  const std::string hash = c.state == State::connecting ? c.link->certificate() : "";
  if (!hash.empty() && !send_message(socket(), {.kind = Kind::certificate, .slot = slot}, hash))
    return put_out("it does not read its socket");
  const bool connects = c.state == State::connecting;
  c.state = State::open;
  c.deadline_ns = kNever;
  c.is_readable = c.is_writable = true;
  note(slot, connects ? Connection::kConnected : Connection::kAccepted);
  queue(slot);
}

// Whoever came by TLS did not come in: the slot waits for the next one.
void Tenant::offer_again(uint32_t slot) {
  Connection& c = connections_[slot];
  const Place port = c.peer;
  const uint16_t generation = c.generation;
  clear(slot);
  c.generation = generation;
  Connection* listening = at(port.slot);
  c.state = State::offered;
  c.peer = port;
  if (!listening || listening->state != State::listening) return close(slot, 0);
  listening->listener->offered.push_back(slot);
  queue(port.slot);
}

void Tenant::refuse_waiting(Listener& listener) {
  for (const Place& guest : listener.waiting) {
    Tenant* other = host_.find(guest.tenant);
    Connection* theirs = other ? other->at(guest.slot) : nullptr;
    if (theirs && theirs->state == State::connecting) other->close(guest.slot, ECONNREFUSED);
  }
}

void Tenant::close(uint32_t slot, uint8_t status) {
  Connection& c = connections_[slot];
  if (c.state == State::closed) return;
  if (c.listener) {
    host_.listens_no_more({id_, slot});
    refuse_waiting(*c.listener);
    if (!c.listener->local_path.empty()) unlink(c.listener->local_path.c_str());
    const std::deque<uint32_t> offered = std::exchange(c.listener->offered, {});
    c.listener.reset();
    for (const uint32_t mine : offered) close(mine, 0);
  }
  if (c.state == State::offered) {
    Connection* port = at(c.peer.slot);
    if (port && port->listener) std::erase(port->listener->offered, slot);
  }
  held_bytes_ -= c.unsent_bytes();
  c.unsent = {};
  c.unsent_from = 0;
  c.link.reset();
  c.state = State::closed;
  c.status = status;
  if (c.is_direct) {
    Tenant* other = host_.find(c.peer.tenant);
    Connection* theirs = other ? other->at(c.peer.slot) : nullptr;
    const bool is_pair = theirs && theirs->is_direct && theirs->state == State::open &&
                         theirs->peer.tenant == id_ && theirs->peer.slot == slot;
    if (is_pair) {
      theirs->peer = {};
      other->note(c.peer.slot, Connection::kEnd);
    }
  }
  note(slot, 0);
}

}  // namespace specedge::stack
