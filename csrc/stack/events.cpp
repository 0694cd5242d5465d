// What has happened to a guest's connections.
#include <sys/epoll.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "guest.h"

namespace specedge::stack {

namespace {

constexpr uint32_t kLooks = 64;         // of these, one at least is at the descriptors
constexpr uint32_t kReleased = 64;      // elements whose room is given back together, at most
constexpr uint32_t kMostFruitless = 8;  // in a row, then of 256 waits one spins

int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

void rest() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void Guest::poll(const Visitor& visit) {
  const bool has_looked = std::exchange(has_looked_, false) && ++polls_ % kLooks;
  if (!is_lost_ && !has_looked) collect(0);
  if (is_lost_) return lose(visit);
  completions(visit);
  for (uint32_t n = receives_.capacity(); n && receives_.has_next(); --n) {
    // The daemon shows them first: they explain what is received, or are of the slot's last
    // connection.
    completions(visit);
    receive(receives_.peek(), visit);
    receives_.take();
  }
  if (receives_.release()) ring(daemon_bell_.get());
  for (size_t i = 0; i < stirred_.size(); ++i) read_direct(stirred_[i], visit);
  stirred_.clear();
  flush();
  unblock(visit);
  const bool is_left = receives_.has_next() || completions_.has_next();
  if (is_left && !is_awake_) ring(own_bell_.get());
  is_lost_ |= !jobs_.is_sound() || !sends_.is_sound();
  if (is_lost_) lose(visit);
}

// Which descriptors have something. Each says it once only.
void Guest::collect(int timeout_ms) {
  epoll_event events[64];
  const int count = epoll_wait(epoll_.get(), events, 64, timeout_ms);
  for (int i = 0; i < count; ++i) {
    if (events[i].data.u32 == kMaxSlots + 1) hear();
    if (events[i].data.u32 < kMaxSlots) stirred_.push_back(events[i].data.u32);
  }
}

void Guest::hear() {
  Message message;
  for (;;) {
    switch (receive_message(socket_.get(), message, true)) {
      case Received::nothing:
        return;
      case Received::gone:
        is_lost_ = true;
        return;
      case Received::message:
        if (message.header.slot >= slots_.size()) continue;
        if (message.header.kind == Kind::direct) add_direct(message);
        if (message.header.kind == Kind::certificate)
          slots_[message.header.slot].certificate = message.text;
    }
  }
}

// Without it, the slot is given up once it is told to have a memory of its own.
void Guest::add_direct(Message& message) {
  const uint32_t slot = message.header.slot;
  if (message.descriptors.size() != 3 || slots_[slot].direct) return;
  auto made = std::make_unique<Direct>();
  const auto [mine, theirs] = message.header.is_first
                                  ? std::pair(Region::Ring::send, Region::Ring::receive)
                                  : std::pair(Region::Ring::receive, Region::Ring::send);
  made->region = Region(message.descriptors[0].get(), kDirectSizes);
  made->out = made->region.data_producer(mine);
  made->in = made->region.data_consumer(theirs);
  made->bell = std::move(message.descriptors[1]);
  made->peer_bell = std::move(message.descriptors[2]);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.u32 = slot;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, made->bell.get(), &event)) return;
  slots_[slot].direct = std::move(made);
  directs_.push_back(slot);
  stirred_.push_back(slot);
}

void Guest::completions(const Visitor& visit) {
  for (uint32_t n = completions_.capacity(); n && completions_.has_next(); --n) {
    const Element element = completions_.peek();
    completions_.take();
    if (element.slot < slots_.size()) complete(element, visit);
  }
  if (completions_.release()) ring(daemon_bell_.get());
}

void Guest::complete(const Element& element, const Visitor& visit) {
  Slot& of = slots_[element.slot];
  Event event{.slot = element.slot,
              .address = element.address,
              .port = element.port,
              .is_direct = bool(element.flags & kDirect)};
  if (element.op == Op::sent) {
    of.unacknowledged -= std::min(of.unacknowledged, element.length);
    return;
  }
  if (element.op == Op::accepted) {
    event.kind = Event::Kind::accepted;
    event.listener = of.listener;
    offer(of.listener);
  } else if (element.op == Op::connected) {
    event.kind = Event::Kind::connected;
  } else {
    event.kind = Event::Kind::listening;
    if (of.state == Slot::State::listening) visit(event);
    return;
  }
  // What the element speaks of was sent over the socket before it.
  if (event.is_direct && !of.direct) hear();
  if (event.is_direct && !of.direct) return abort(element.slot);
  const bool is_awaited = of.state == Slot::State::connecting || of.state == Slot::State::offered;
  if (!is_awaited) return;  // it was given up meanwhile
  if (event.kind == Event::Kind::connected && of.certificate.empty()) hear();
  of.state = Slot::State::open;
  if (of.direct) stirred_.push_back(element.slot);  // the peer may have been faster
  event.certificate = of.certificate;
  visit(event);
}

void Guest::receive(const Element& element, const Visitor& visit) {
  if (element.slot >= slots_.size()) return;
  Slot& of = slots_[element.slot];
  switch (element.op) {
    case Op::data: {
      const std::string_view bytes = receives_.bytes(element);
      if (of.state != Slot::State::open || of.has_ended || bytes.empty()) return;
      return visit({.kind = Event::Kind::data, .slot = element.slot, .bytes = bytes});
    }
    case Op::end:
      if (of.direct) {
        of.direct->is_peer_gone = true;
        return read_direct(element.slot, visit);
      }
      return end_of(element.slot, visit);
    case Op::closed: {
      if (of.state == Slot::State::free) return;
      const bool is_told = of.state != Slot::State::offered;
      free_slot(element.slot);
      if (is_told)
        visit(
            {.kind = Event::Kind::closed, .slot = element.slot, .status = uint8_t(element.value)});
      return;
    }
    default:
      return;
  }
}

void Guest::end_of(uint32_t slot, const Visitor& visit) {
  Slot& of = slots_[slot];
  if (of.has_ended || of.state != Slot::State::open) return;
  of.has_ended = true;
  visit({.kind = Event::Kind::end, .slot = slot});
}

void Guest::read_direct(uint32_t slot, const Visitor& visit) {
  Slot& of = slots_[slot];
  const auto is_there = [&of] {
    const bool is_known = of.state == Slot::State::open || of.state == Slot::State::closing;
    return of.direct && is_known && !of.is_paused;
  };
  if (!is_there()) return;
  // No more than a memory holds: others are to be served, too.
  constexpr int64_t kOne = kDirectSizes.arena_bytes / kDirectSizes.data;
  int64_t left = kDirectSizes.arena_bytes;
  Event event{.kind = Event::Kind::data, .slot = slot};
  while (left > 0 && is_there() && of.direct->in.has_next()) {
    Direct& from = *of.direct;
    if (from.in.taken() == kReleased && from.in.release()) ring(from.peer_bell.get());
    const Element element = from.in.peek();
    left -= kOne + element.length;
    event.bytes = from.in.bytes(element);
    if (element.op == Op::data && !event.bytes.empty()) {
      if (of.state == Slot::State::open && !of.has_ended) visit(event);
    } else if (element.op == Op::end) {
      end_of(slot, visit);
    } else {
      return abort(slot);  // the peer writes nonsense
    }
    if (of.direct) of.direct->in.take();
  }
  if (!of.direct) return;
  Direct& from = *of.direct;
  if (from.in.release()) ring(from.peer_bell.get());
  if (!from.out.is_sound()) return abort(slot);
  if (!is_there()) return;
  const bool is_left = from.in.has_next();
  if (is_left && !is_awake_) ring(from.bell.get());
  if (!is_left && from.is_peer_gone) end_of(slot, visit);
}

// Tell those of room that were told of none.
void Guest::unblock(const Visitor& visit) {
  for (const uint32_t slot : std::exchange(blocked_, {})) {
    Slot& of = slots_[slot];
    if (!of.is_blocked) continue;
    DataProducer& out = of.direct ? of.direct->out : sends_;
    const bool is_for_nobody = of.direct && of.direct->is_peer_gone;
    if (!is_awake_ && !out.room(1)) out.want_room();
    const bool has_room = out.room(1) && (of.direct || controls_waiting_.empty());
    if ((!has_room && !is_for_nobody) || of.unacknowledged >= kWindowBytes) {
      blocked_.push_back(slot);
      continue;
    }
    of.is_blocked = false;
    if (of.state != Slot::State::open) continue;
    if (of.ends)
      end_direct(slot);
    else
      visit({.kind = Event::Kind::writable, .slot = slot});
  }
}

void Guest::lose(const Visitor& visit) {
  if (!is_told_) visit({.kind = Event::Kind::lost});
  is_told_ = true;
}

// Begin to fetch the bytes that its next element brings, while others are looked at.
void Guest::fetch(const Direct& from) { __builtin_prefetch(from.in.bytes(from.in.peek()).data()); }

bool Guest::has_news() {
  bool has_some = receives_.has_next() || completions_.has_next();
  for (const uint32_t slot : directs_) {
    if (slots_[slot].is_paused || !slots_[slot].direct->in.has_next()) continue;
    stirred_.push_back(slot);
    has_some = true;
    fetch(*slots_[slot].direct);
  }
  for (const uint32_t slot : blocked_)
    has_some |= (slots_[slot].direct ? slots_[slot].direct->out : sends_).room(1) != 0;
  return has_some;
}

// Ring for those who wait for room, which was given back without a barrier while awake.
void Guest::give_room() {
  barrier();
  if (receives_.is_waited_for() || completions_.is_waited_for()) ring(daemon_bell_.get());
  for (const uint32_t slot : directs_)
    if (slots_[slot].direct->in.is_waited_for()) ring(slots_[slot].direct->peer_bell.get());
}

void Guest::set_awake(bool awake) {
  is_awake_ = awake;
  completions_.set_awake(awake);
  receives_.set_awake(awake);
  for (const uint32_t slot : directs_) slots_[slot].direct->in.set_awake(awake);
  if (awake) return;
  for (const uint32_t slot : blocked_)
    (slots_[slot].direct ? slots_[slot].direct->out : sends_).want_room();
  barrier_for_all();
}

// Look for news without a bell. Whoever finds none may have kept the one that it waits for from
// the processor: it soon does so seldom.
bool Guest::spin(int64_t most_ns) {
  if (waits_to_sleep_) {
    --waits_to_sleep_;
    return false;
  }
  if (!is_awake_ && passes_others_barriers()) set_awake(true);
  bool found = has_news();
  if (!found) {
    give_room();
    for (const int64_t until = now_ns() + most_ns; !found && now_ns() < until;) {
      for (int n = 0; n < 32 && !found; ++n) {
        rest();
        found = has_news();
      }
    }
  }
  fruitless_spins_ = found ? 0 : std::min(fruitless_spins_ + 1, kMostFruitless);
  waits_to_sleep_ = (1u << fruitless_spins_) - 1;
  return found;
}

void Guest::wait(int timeout_ms, int64_t spin_ns) {
  has_looked_ = spin_ns && spin(spin_ns);
  if (has_looked_) return;
  if (is_awake_) {
    set_awake(false);
    if ((has_looked_ = has_news())) return;
  }
  collect(timeout_ms);
  has_looked_ = true;
}

}  // namespace specedge::stack
