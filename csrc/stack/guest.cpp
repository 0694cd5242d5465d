// What a guest asks for and sends; what has happened is in events.cpp.
#include "guest.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace specedge::stack {

namespace {

constexpr int kAnswer_ms = 5000;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

Descriptor attach_to(const std::string& path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path) throw std::runtime_error("the path is too long");
  std::memcpy(name.sun_path, path.c_str(), path.size());
  Descriptor made(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made) fail("a socket");
  if (connect(made.get(), reinterpret_cast<sockaddr*>(&name), sizeof name)) fail(path);
  return made;
}

Message ask(int socket, const Header& header, std::string_view text = {}) {
  pollfd answered{socket, POLLIN, 0};
  Message answer;
  send_message(socket, header, text);  // who is refused already need not have said it
  if (poll(&answered, 1, kAnswer_ms) != 1 ||
      receive_message(socket, answer, true) != Received::message)
    throw std::runtime_error("it does not answer as a specedge-stack of this version does");
  if (answer.header.kind == Kind::refused) throw std::runtime_error(answer.text);
  return answer;
}

void watch(int epoll, int descriptor, uint32_t what, uint32_t how) {
  epoll_event event{};
  event.events = EPOLLIN | how;
  event.data.u32 = what;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event)) fail("epoll");
}

}  // namespace

Guest::Guest(const std::string& path, Sizes sizes)
    : socket_(attach_to(path)), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  Message answer = ask(socket_.get(), {.kind = Kind::attach, .sizes = sizes});
  if (answer.header.kind != Kind::attached || answer.descriptors.size() != 3)
    throw std::runtime_error("it does not attach guests");
  region_ = Region(answer.descriptors[0].get(), sizes);
  daemon_bell_ = std::move(answer.descriptors[1]);
  own_bell_ = std::move(answer.descriptors[2]);
  jobs_ = region_.producer(Region::Ring::job);
  completions_ = region_.consumer(Region::Ring::completion);
  sends_ = region_.data_producer(Region::Ring::send);
  receives_ = region_.data_consumer(Region::Ring::receive);
  slots_.reserve(kMaxSlots);
  watch(epoll_.get(), own_bell_.get(), kMaxSlots, EPOLLET);
  watch(epoll_.get(), socket_.get(), kMaxSlots + 1, 0);
}

uint32_t Guest::take_slot(Slot::State state) {
  if (free_.empty()) {
    if (slots_.size() >= kMaxSlots)
      throw std::runtime_error("all slots for connections are in use");
    free_.push_back(uint32_t(slots_.size()));
    slots_.emplace_back();
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  slots_[slot].state = state;
  return slot;
}

void Guest::free_slot(uint32_t slot) {
  if (const auto& direct = slots_[slot].direct) {
    std::erase(directs_, slot);
    // The peer may have the bell for longer.
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, direct->bell.get(), nullptr);
  }
  const uint16_t generation = uint16_t(slots_[slot].generation + 1);
  slots_[slot] = {};
  slots_[slot].generation = generation;
  free_.push_back(slot);
}

uint32_t Guest::begin(Op op, Slot::State state, const Address& address, uint16_t port,
                      const std::string& terms) {
  const uint32_t slot = take_slot(state);
  const uint8_t flags = terms.empty() ? 0 : kTls;
  try {
    if (flags) send_terms(slot, terms);
  } catch (const std::system_error&) {
    free_slot(slot);
    throw;
  }
  job({.op = op,
       .flags = flags,
       .port = port,
       .slot = slot,
       .length = slots_[slot].generation,
       .address = address});
  return slot;
}

uint32_t Guest::connect(const Address& address, uint16_t port, const std::string& terms) {
  return begin(Op::connect, Slot::State::connecting, address, port, terms);
}

uint32_t Guest::listen(const Address& address, uint16_t port, const std::string& terms) {
  return begin(Op::listen, Slot::State::listening, address, port, terms);
}

void Guest::renew(uint32_t listener, const std::string& terms) { send_terms(listener, terms); }

// A daemon that is behind is waited for; that it has gone is heard in another way.
void Guest::send_terms(uint32_t slot, const std::string& terms) {
  pollfd taken{socket_.get(), POLLOUT, 0};
  while (!send_message(socket_.get(), {.kind = Kind::terms, .slot = slot}, terms)) {
    if (errno != EAGAIN) return;
    if (!::poll(&taken, 1, kAnswer_ms))
      throw std::system_error(ETIMEDOUT, std::generic_category(), "it does not read its socket");
  }
}

void Guest::accept(uint32_t listener, uint32_t backlog) {
  for (uint32_t n = 0; n < backlog; ++n) offer(listener);
}

void Guest::offer(uint32_t listener) {
  if (slots_[listener].state != Slot::State::listening) return;
  if (free_.empty() && slots_.size() >= kMaxSlots) return;
  const uint32_t slot = take_slot(Slot::State::offered);
  slots_[slot].listener = listener;
  job({.op = Op::accept, .slot = slot, .value = listener, .length = slots_[slot].generation});
}

size_t Guest::send_frame(uint32_t slot, std::string_view bytes) {
  const size_t taken = put_frame(slot, bytes);
  flush();
  return taken;
}

size_t Guest::put_frame(uint32_t slot, std::string_view bytes) {
  const Slot& to = slots_.at(slot);
  DataProducer& out = to.direct ? to.direct->out : sends_;
  const bool is_for_nobody = to.sends() && to.direct && to.direct->is_peer_gone;
  if (is_for_nobody) return bytes.size();
  size_t taken = 0;
  while (taken < bytes.size()) {
    const size_t free = room(slot, bytes.size() - taken).size();
    if (!free) break;
    out.fill(bytes.data() + taken, uint32_t(free));
    put(slot, free);
    taken += free;
  }
  return taken;
}

std::span<char> Guest::room(uint32_t slot, size_t wanted) {
  Slot& to = slots_.at(slot);
  if (!to.sends() || !wanted || (to.direct && to.direct->is_peer_gone)) return {};
  DataProducer& out = to.direct ? to.direct->out : sends_;
  const uint32_t window = to.direct ? kFrameBytes : kWindowBytes - to.unacknowledged;
  const bool waits = !to.direct && !controls_waiting_.empty();
  const auto most = waits ? 0 : uint32_t(std::min<size_t>({wanted, kFrameBytes, window}));
  uint32_t found = most ? out.room(most) : 0;
  if (most && !found && !is_awake_) {
    out.want_room();
    found = out.room(most);
  }
  if (!found) block(slot);
  return {out.place(), found};
}

void Guest::put(uint32_t slot, size_t bytes) {
  if (!bytes) return;
  Slot& to = slots_.at(slot);
  if (!to.direct) {
    sends_.put_data(slot, uint32_t(bytes), to.generation);
    to.unacknowledged += uint32_t(bytes);
    return;
  }
  to.direct->out.put_data(slot, uint32_t(bytes), to.generation);
  if (!to.is_unshown) unshown_.push_back(slot);
  to.is_unshown = true;
}

void Guest::end(uint32_t slot) {
  Slot& of = slots_.at(slot);
  if (of.state != Slot::State::open || of.is_over) return;
  of.is_over = true;
  if (!of.direct) return control({.op = Op::end, .port = of.generation, .slot = slot});
  of.ends = true;
  end_direct(slot);
}

void Guest::end_direct(uint32_t slot) {
  Slot& of = slots_[slot];
  DataProducer& out = of.direct->out;
  if (!out.has_room()) out.want_room();
  of.ends = !out.has_room() && !of.direct->is_peer_gone;
  if (of.ends) return block(slot);
  if (out.has_room()) out.put_control({.op = Op::end, .slot = slot});
  if (out.publish()) ring(of.direct->peer_bell.get());
}

void Guest::block(uint32_t slot) {
  if (!slots_[slot].is_blocked) blocked_.push_back(slot);
  slots_[slot].is_blocked = true;
}

void Guest::close(uint32_t slot) {
  Slot& of = slots_.at(slot);
  if (of.state == Slot::State::free || of.state == Slot::State::closing) return;
  const bool is_open = of.state == Slot::State::open;
  of.state = Slot::State::closing;
  if (is_open)
    control({.op = Op::closed, .port = of.generation, .slot = slot});
  else
    job({.op = Op::abort, .slot = slot});
}

void Guest::abort(uint32_t slot) {
  Slot& of = slots_.at(slot);
  if (of.state == Slot::State::free) return;
  of.state = Slot::State::closing;
  job({.op = Op::abort, .slot = slot});
}

void Guest::pause(uint32_t slot) {
  slots_.at(slot).is_paused = true;
  job({.op = Op::pause, .slot = slot});
}

void Guest::resume(uint32_t slot) {
  Slot& of = slots_.at(slot);
  of.is_paused = false;
  job({.op = Op::resume, .slot = slot});
  if (of.direct) ring(of.direct->bell.get());
}

void Guest::detach() {
  flush();
  socket_ = Descriptor();
  epoll_ = Descriptor();
  // The other descriptors too, at once: who holds this guest may be long in letting go of it.
  daemon_bell_ = Descriptor();
  own_bell_ = Descriptor();
  for (Slot& slot : slots_) {
    if (!slot.direct) continue;
    slot.direct->bell = Descriptor();
    slot.direct->peer_bell = Descriptor();
  }
  is_lost_ = is_told_ = true;
}

void Guest::job(const Element& element) {
  jobs_waiting_.push_back(element);
  flush();
}

void Guest::control(const Element& element) {
  controls_waiting_.push_back(element);
  flush();
}

void Guest::flush() {
  while (!jobs_waiting_.empty()) {
    if (!jobs_.has_room()) jobs_.want_room();
    if (!jobs_.has_room()) break;
    jobs_.put(jobs_waiting_.front());
    jobs_waiting_.pop_front();
  }
  while (!controls_waiting_.empty()) {
    if (!sends_.has_room()) sends_.want_room();
    if (!sends_.has_room()) break;
    sends_.put_control(controls_waiting_.front());
    controls_waiting_.pop_front();
  }
  const bool has_jobs = jobs_.publish(), has_sends = sends_.publish();
  if (has_jobs || has_sends) ring(daemon_bell_.get());
  for (const uint32_t slot : unshown_) {
    if (!std::exchange(slots_[slot].is_unshown, false)) continue;
    Direct& to = *slots_[slot].direct;
    if (to.out.publish()) ring(to.peer_bell.get());
  }
  unshown_.clear();
}

std::string ask_daemon(const std::string& path, Kind kind, const std::string& text) {
  const Descriptor socket = attach_to(path);
  return ask(socket.get(), {.kind = kind}, text).text;
}

}  // namespace specedge::stack
