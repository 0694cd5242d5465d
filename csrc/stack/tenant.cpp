// The rings of a guest: its jobs in, what it sends, and what it is told.
#include "tenant.h"

#include <algorithm>
#include <utility>

namespace specedge::stack {

namespace {

constexpr int kJobs = 256, kTurns = 256, kReads = 4;  // at a time: others wait
constexpr size_t kHeldBytes = 16 << 20;               // of one guest
constexpr size_t kTerms = 64;
constexpr uint32_t kElementCost = 64;
constexpr int64_t kLinger_ns = 5'000'000'000;

}  // namespace

Tenant::Tenant(uint32_t id, std::string user, Descriptor socket, Host& host)
    : id_(id), user_(std::move(user)), socket_(std::move(socket)), host_(host) {}

Tenant::~Tenant() {
  if (own_bell_) host_.unwatch(own_bell_.get());  // the guest may have it for longer
  for (uint32_t slot = 0; slot < connections_.size(); ++slot)
    if (connections_[slot].state != State::free) close(slot, 0);
}

void Tenant::attach(Sizes sizes) {
  Descriptor memory(Region::make(sizes));
  Descriptor own(make_bell()), guest(make_bell());
  host_.watch(own.get(), {id_, kBell});
  region_ = Region(memory.get(), sizes);
  jobs_ = region_.consumer(Region::Ring::job);
  completions_ = region_.producer(Region::Ring::completion);
  sends_ = region_.data_consumer(Region::Ring::send);
  receives_ = region_.data_producer(Region::Ring::receive);
  const int descriptors[] = {memory.get(), own.get(), guest.get()};
  const Header header{.kind = Kind::attached, .sizes = sizes};
  if (!send_message(socket(), header, {}, descriptors)) put_out("it does not read its socket");
  own_bell_ = std::move(own);
  guest_bell_ = std::move(guest);
}

void Tenant::keep_terms(uint32_t slot, std::string text) {
  Connection* known = at(slot);
  if (known && known->state == State::listening) {  // of those who come from now on
    uint8_t status = 0;
    if (auto tls = make_tls(text, status)) known->listener->tls = std::move(tls);
    return;
  }
  terms_[slot] = std::move(text);
  if (terms_.size() > kTerms) put_out("it keeps terms that nobody uses");
}

size_t Tenant::connections() const {
  return size_t(std::count_if(connections_.begin(), connections_.end(), [](const auto& c) {
    return c.state != State::free && c.state != State::offered;
  }));
}

Connection* Tenant::at(uint32_t slot) {
  return slot < connections_.size() ? &connections_[slot] : nullptr;
}

Connection* Tenant::fresh(const Element& job) {
  const uint32_t slot = job.slot;
  if (slot < kMaxSlots && slot >= connections_.size()) connections_.resize(slot + 1);
  Connection* found = at(slot);
  if (!found || found->state != State::free) {
    put_out("it asks for a slot that is in use, or that there is not");
    return nullptr;
  }
  found->generation = uint16_t(job.length);
  return found;
}

bool Tenant::work() {
  for (int n = 0; n < kJobs && fault_.empty() && jobs_.has_next(); ++n) {
    const Element job = jobs_.peek();
    if (hearing != Hearing::done && lacks_terms(job)) {
      hearing = Hearing::due;
      break;
    }
    hearing = Hearing::none;
    jobs_.take();
    ++elements_;
    do_job(job);
  }
  if (jobs_.release()) ring(guest_bell_.get());
  if (!starved_.empty() && receives_.room(1))
    for (const uint32_t slot : std::exchange(starved_, {})) queue(slot);
  for (int n = 0; n < kTurns && fault_.empty() && !ready_.empty(); ++n) {
    const uint32_t slot = ready_.front();
    ready_.pop_front();
    connections_[slot].is_queued = false;
    turn(slot);
  }
  if (!completions_.is_sound() || !receives_.is_sound())
    put_out("it wrote nonsense into the position of a ring");
  return fault_.empty() && (jobs_.has_next() || !ready_.empty());
}

bool Tenant::lacks_terms(const Element& job) const {
  const bool asks = job.op == Op::connect || job.op == Op::listen;
  return asks && (job.flags & kTls) && !terms_.contains(job.slot);
}

void Tenant::do_job(const Element& job) {
  Connection* known = at(job.slot);
  switch (job.op) {
    case Op::connect:
      return connect(job);
    case Op::listen:
      return listen(job);
    case Op::accept:
      return accept(job);
    case Op::abort:
      if (known && known->state != State::free && known->state != State::closed) close(job.slot, 0);
      return;
    case Op::pause:
    case Op::resume:
      if (!known) return put_out("it names a slot that there is not");
      known->is_paused = job.op == Op::pause;
      return queue(job.slot);
    default:
      put_out("it asks for a job that there is not");
  }
}

bool Tenant::wants_to_send() { return fault_.empty() && next_bytes(); }

uint32_t Tenant::next_bytes() {
  if (!is_attached() || !fault_.empty() || held_bytes_ > kHeldBytes) return 0;
  if (!sends_.has_next()) return 0;
  const Element element = sends_.peek();
  return kElementCost + std::min(element.length, kFrameBytes);
}

void Tenant::send_next() {
  take_data(sends_.peek());
  sends_.take();
  ++elements_;
  // At once: what the guest has said it wants to know does not wait for others' turns.
  if (sends_.release()) ring(guest_bell_.get());
}

void Tenant::take_data(const Element& element) {
  Connection* found = at(element.slot);
  if (!found) return put_out("it sends by a slot that there is not");
  Connection& c = *found;
  const std::string_view bytes = sends_.bytes(element);
  if (element.op == Op::data && bytes.empty())
    return put_out("it sends bytes from outside its memory");
  // It may not know yet, or not have known then, that the connection has gone.
  if (element.port != c.generation || c.state != State::open) return;
  if (c.is_direct && element.op != Op::closed) return put_out("it sends past a memory of its own");
  if (element.op == Op::data) {
    if (c.ends) return put_out("it sends after the end");
    if (c.unsent_bytes() + c.unreported + element.length > kWindowBytes)
      return put_out("it sends more than its window");
    size_t taken = 0;
    if (!c.unsent_bytes() && c.is_writable) {
      const ssize_t got = c.link->write(bytes.data(), bytes.size());
      if (got < 0) return close(element.slot, uint8_t(-got));
      taken = size_t(got);
      c.unreported += uint32_t(taken);
      c.is_writable = taken == bytes.size();
    }
    c.unsent.append(bytes.substr(taken));
    held_bytes_ += bytes.size() - taken;
  } else if (element.op == Op::end) {
    c.ends = true;
  } else if (element.op == Op::closed) {
    if (c.is_direct) return close(element.slot, 0);
    c.state = State::closing;
    wake(element.slot, c.deadline_ns = now_ns() + kLinger_ns);
  } else {
    return put_out("it sends what there is not");
  }
  flush(element.slot);
}

void Tenant::flush(uint32_t slot) {
  Connection& c = connections_[slot];
  if (!c.link) return;
  if (const ssize_t done = c.link->push(); done < 0) return close(slot, uint8_t(-done));
  while (c.unsent_bytes() && c.is_writable) {
    const ssize_t got = c.link->write(c.unsent.data() + c.unsent_from, c.unsent_bytes());
    if (got < 0) return close(slot, uint8_t(-got));
    c.is_writable = got > 0;
    c.unsent_from += size_t(got);
    c.unreported += uint32_t(got);
    held_bytes_ -= size_t(got);
  }
  if (!c.unsent_bytes()) {
    c.unsent = {};
    c.unsent_from = 0;
    const bool is_out = (c.ends || c.state == State::closing) && c.link->end();
    if (is_out && c.state == State::closing) return close(slot, 0);
  }
  if (c.unreported >= kWindowBytes / 4) note(slot, Connection::kSent);
  wake(slot, c.link->due_ns());
}

void Tenant::read_some(uint32_t slot) {
  Connection& c = connections_[slot];
  for (int n = 0; n < kReads; ++n) {
    if (!c.is_readable || c.is_paused || c.has_ended || c.state != State::open || !c.link) return;
    uint32_t room = receives_.room(kFrameBytes);
    if (!room) {
      receives_.want_room();
      room = receives_.room(kFrameBytes);
    }
    if (!room) return starved_.push_back(slot);  // until the guest rings
    const ssize_t got = c.link->read(receives_.place(), room);
    if (got == kNothing) {
      c.is_readable = false;
      return wake(slot, c.link->due_ns());
    }
    if (got < 0) return close(slot, uint8_t(-got));
    if (got) {
      receives_.put_data(slot, uint32_t(got));
      ++elements_;
      const bool is_all = uint32_t(got) < room && c.link->is_emptied_by_a_short_read();
      if (is_all && !c.is_peer_over) {
        c.is_readable = false;
        return;
      }
    } else {
      c.has_ended = true;
      return note(slot, Connection::kEnd);
    }
  }
  queue(slot);
}

void Tenant::note(uint32_t slot, uint8_t tell) {
  Connection& c = connections_[slot];
  c.tell |= tell;
  if (!c.is_told) telling_.push_back(slot);
  c.is_told = true;
  host_.activate(*this);
}

void Tenant::queue(uint32_t slot) {
  Connection& c = connections_[slot];
  if (!c.is_queued) ready_.push_back(slot);
  c.is_queued = true;
}

void Tenant::wake(uint32_t slot, int64_t due_ns) {
  Connection& c = connections_[slot];
  if (due_ns < c.alarm_ns) host_.wake_at(c.alarm_ns = due_ns, {id_, slot});
}

void Tenant::alarm(uint32_t slot) {
  if (Connection* known = at(slot)) {
    known->alarm_ns = kNever;
    ready(slot, true, true);
  }
}

// As it was before its first job; but for the lines that it stands in.
void Tenant::clear(uint32_t slot) {
  Connection& c = connections_[slot];
  const bool is_queued = c.is_queued, is_told = c.is_told;
  c = {};
  c.is_queued = is_queued;
  c.is_told = is_told;
}

void Tenant::ready(uint32_t slot, bool readable, bool writable, bool is_over) {
  Connection* known = at(slot);
  if (!known || known->state == State::free) return;
  known->is_readable |= readable;
  known->is_writable |= writable;
  known->is_peer_over |= is_over;
  queue(slot);
  host_.activate(*this);
}

void Tenant::tell() {
  if (!is_attached()) return;
  while (!telling_.empty() && tell_of(telling_.front())) {
    connections_[telling_.front()].is_told = false;
    telling_.pop_front();
  }
  // In this order: what is told of a slot comes before what was read from it.
  const bool completed = completions_.publish(), received = receives_.publish();
  if (completed || received) ring(guest_bell_.get());
}

// False: the guest has no room for it now.
bool Tenant::tell_of(uint32_t slot) {
  Connection& c = connections_[slot];
  constexpr std::pair<uint8_t, Op> kCompletions[] = {{Connection::kConnected, Op::connected},
                                                     {Connection::kListening, Op::listening},
                                                     {Connection::kAccepted, Op::accepted},
                                                     {Connection::kSent, Op::sent}};
  for (const auto& [bit, op] : kCompletions) {
    if (!(c.tell & bit)) continue;
    if (!completions_.has_room()) completions_.want_room();
    if (!completions_.has_room()) return false;
    Element told{.op = op,
                 .flags = uint8_t(c.is_direct ? kDirect : 0),
                 .port = c.port,
                 .slot = slot,
                 .address = c.address};
    if (op == Op::sent) told.length = std::exchange(c.unreported, 0);
    completions_.put(told);
    c.tell &= uint8_t(~bit);
  }
  const bool is_last = c.state == State::closed;
  if (!is_last && !(c.tell & Connection::kEnd)) return true;
  if (!receives_.has_room()) receives_.want_room();
  if (!receives_.has_room()) return false;
  c.tell = 0;
  if (!is_last) {
    receives_.put_control({.op = Op::end, .slot = slot});
    return true;
  }
  receives_.put_control({.op = Op::closed, .slot = slot, .value = c.status});
  clear(slot);
  return true;
}

void Tenant::last_words() {
  const uint32_t most = is_attached() ? sends_.capacity() : 0;
  for (uint32_t n = 0; n < most && fault_.empty() && next_bytes(); ++n) send_next();
}

void Tenant::move_away() {
  for (uint32_t slot = 0; slot < connections_.size(); ++slot) {
    const Connection& c = connections_[slot];
    if (c.is_local && (c.state == State::open || c.state == State::connecting)) close(slot, kMoved);
  }
}

}  // namespace specedge::stack
