// specedge-stack: the daemon. One loop: what has happened, what each guest wants, whose turn it is
// to send, and then every guest is told.
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "attach_socket.h"
#include "options.h"
#include "tenant.h"

namespace specedge::stack {

namespace {

constexpr uint32_t kAttach = 1, kSignals = 2, kTimer = 3;  // of the daemon itself: tenant 0
constexpr int64_t kGreeting_ns = 5'000'000'000;
// Bytes sent before others are looked at: fewer than a guest can show at once, or whoever has shown
// all it may would be served all of it in every turn, and the turns would decide nothing.
constexpr uint64_t kBudget = 512 << 10;
constexpr int64_t kAgain_ns = 100'000'000;  // after a guest could not be let in
constexpr size_t kStrangers = 64;           // that have not said what they want, beside the guests
constexpr int kMessages = 16;               // of one guest at a time
constexpr int64_t kAtOnce_ns = 1'000'000;   // guests active within it are several at once

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

class Daemon : public Host {
 public:
  explicit Daemon(const Options& options);
  ~Daemon() override;
  void run();

  void watch(int descriptor, Place place) override;
  void unwatch(int descriptor) override {
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, descriptor, nullptr);
  }
  void wake_at(int64_t due_ns, Place place) override { alarms_.emplace(due_ns, place); }
  void activate(Tenant& tenant) override;
  Tenant* find(uint32_t tenant) override;
  Place* listener_at(const Address& address, uint16_t port) override;
  void listens(const Address& address, uint16_t port, Place place) override;
  void listens_no_more(Place place) override;
  Module module() const override { return options_.module; }
  const Shape& shape() const override { return options_.shape; }
  std::string unix_path(uint16_t port) const override {
    return options_.socket + "." + std::to_string(port);
  }

 private:
  struct Port {
    Address address;
    Place place;
  };

  bool is_busy() const { return !active_.empty() || !shares_due_ns_; }
  int64_t due_ns() const {
    return std::min(shares_due_ns_, alarms_.empty() ? kNever : alarms_.begin()->first);
  }
  void happened(const epoll_event& event);
  void serve();
  void sleep();
  void coalesce() const;
  void admit();
  void greet(Tenant& tenant, const Message& message);
  bool hear(Tenant& tenant);
  bool answer(Tenant& tenant, Message& message);
  void ring_alarms();
  void drop(uint32_t tenant);
  void complain_of(const Tenant& tenant);
  size_t guests() const;
  std::string status() const;

  Options options_;
  AttachSocket attach_;
  Descriptor epoll_, signals_, timer_;
  Bucket complaints_{1};
  uint64_t unsaid_ = 0;  // since the last complaint
  Shares shares_;
  int64_t shares_due_ns_ = kNever;
  int64_t timer_due_ns_ = kNever;  // what the timer is set to
  std::unordered_map<uint32_t, std::unique_ptr<Tenant>> tenants_;
  std::vector<uint32_t> active_;
  std::multimap<int64_t, Place> alarms_;
  std::multimap<uint16_t, Port> ports_;
  uint32_t last_id_ = 0;
  uint32_t served_last_ = 0;      // a guest
  int64_t several_until_ns_ = 0;  // guests are active
  int64_t looked_ns_ = 0;         // and found that something had happened
  bool is_stopped_ = false;
};

Daemon::Daemon(const Options& options)
    : options_(options),
      attach_(options.socket, options.is_shared),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      timer_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
      shares_(options.bytes_per_s, options.user_bytes_per_s) {
  sigset_t stops;
  sigemptyset(&stops);
  sigaddset(&stops, SIGTERM);
  sigaddset(&stops, SIGINT);
  sigprocmask(SIG_BLOCK, &stops, nullptr);
  signals_ = Descriptor(signalfd(-1, &stops, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!epoll_ || !timer_ || !signals_) fail("the daemon's own descriptors");
  watch(attach_.get(), {0, kAttach});
  watch(signals_.get(), {0, kSignals});
  watch(timer_.get(), {0, kTimer});
}

Daemon::~Daemon() {
  while (!tenants_.empty()) drop(tenants_.begin()->first);
}

void Daemon::watch(int descriptor, Place place) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.u64 = uint64_t(place.tenant) << 32 | place.slot;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, descriptor, &event))
    throw std::system_error(errno, std::generic_category(), "cannot be watched");
}

void Daemon::run() {
  epoll_event events[256];
  while (!is_stopped_) {
    coalesce();
    sleep();
    const int count = epoll_wait(epoll_.get(), events, 256, is_busy() ? 0 : -1);
    if (count > 0) looked_ns_ = now_ns();
    for (int i = 0; i < count; ++i) happened(events[i]);
    ring_alarms();
    serve();
  }
}

// What happens to several guests soon after one another is heard together, as network cards
// coalesce interrupts. A guest that is alone never waits for others.
void Daemon::coalesce() const {
  if (is_busy() || looked_ns_ >= several_until_ns_) return;
  const int64_t until = std::min(looked_ns_ + options_.coalesce_ns, due_ns());
  const timespec when{until / 1'000'000'000, until % 1'000'000'000};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, nullptr);
}

// Set the timer for what is due next, if nothing is to be done now.
void Daemon::sleep() {
  int64_t due = due_ns();
  if (is_busy() || due == kNever || due == timer_due_ns_) return;
  due = std::max<int64_t>(due, 1);  // 0 would stop the timer
  timer_due_ns_ = due;
  const itimerspec when{{}, {due / 1'000'000'000, due % 1'000'000'000}};
  timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

void Daemon::happened(const epoll_event& event) {
  const Place place{uint32_t(event.data.u64 >> 32), uint32_t(event.data.u64)};
  if (!place.tenant) {
    if (place.slot == kAttach) admit();
    if (place.slot == kSignals) is_stopped_ = true;
    if (place.slot == kTimer) timer_due_ns_ = kNever;  // it has rung
    return;
  }
  Tenant* tenant = find(place.tenant);
  if (!tenant) return;
  if (place.slot == kSocket) {
    hear(*tenant);
    return;
  }
  if (place.slot == kBell) return activate(*tenant);
  constexpr uint32_t kOver = EPOLLHUP | EPOLLERR | EPOLLRDHUP;
  tenant->ready(place.slot, event.events & (EPOLLIN | kOver), event.events & (EPOLLOUT | kOver),
                event.events & kOver);
}

void Daemon::ring_alarms() {
  const int64_t now = now_ns();
  while (!alarms_.empty() && alarms_.begin()->first <= now) {
    const Place place = alarms_.begin()->second;
    alarms_.erase(alarms_.begin());
    if (!place.tenant) {
      admit();
      continue;
    }
    Tenant* tenant = find(place.tenant);
    if (!tenant) continue;
    if (place.slot != kSocket) {
      tenant->alarm(place.slot);
      continue;
    }
    hear(*tenant);
    tenant = find(place.tenant);
    const bool is_late = tenant && !tenant->is_attached() && now >= tenant->greeting_until_ns;
    if (is_late) drop(place.tenant);  // it has not said what it wants
  }
}

void Daemon::serve() {
  const std::vector<uint32_t> working = std::exchange(active_, {});
  for (const uint32_t id : working) {
    Tenant* tenant = find(id);
    if (!tenant || !tenant->is_attached()) continue;
    tenant->is_active = false;
    if (options_.coalesce_ns && id != std::exchange(served_last_, id))
      several_until_ns_ = looked_ns_ + kAtOnce_ns;
    if (tenant->work()) activate(*tenant);
    if (tenant->hearing == Tenant::Hearing::due) {
      const bool is_done = hear(*tenant);
      tenant = find(id);
      if (!tenant) continue;
      if (is_done) tenant->hearing = Tenant::Hearing::done;
    }
    if (tenant->wants_to_send()) shares_.want(tenant->user(), tenant);
  }
  shares_due_ns_ = shares_.serve(now_ns(), kBudget);
  for (const uint32_t id : working) {
    Tenant* tenant = find(id);
    if (!tenant) continue;
    tenant->tell();
    if (!tenant->fault().empty()) drop(id);
  }
}

void Daemon::activate(Tenant& tenant) {
  if (!tenant.is_active) active_.push_back(tenant.id());
  tenant.is_active = true;
}

Tenant* Daemon::find(uint32_t tenant) {
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? nullptr : found->second.get();
}

void Daemon::admit() {
  for (;;) {
    Descriptor socket(accept4(attach_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      // Its descriptor says it once only.
      if (errno != EAGAIN) wake_at(now_ns() + kAgain_ns, {0, kAttach});
      return;
    }
    ucred peer{};
    socklen_t size = sizeof peer;
    if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size)) continue;
    if (tenants_.size() >= options_.max_guests + kStrangers) {
      send_message(socket.get(), {.kind = Kind::refused},
                   "as many guests as it takes are attached");
      continue;
    }
    std::string user = std::to_string(peer.uid);
    if (options_.share_by_process) user += "/" + std::to_string(peer.pid);
    const uint32_t id = ++last_id_ ? last_id_ : ++last_id_;
    const int number = socket.get();
    auto tenant = std::make_unique<Tenant>(id, user, std::move(socket), *this);
    tenant->may_operate = peer.uid == geteuid() || peer.uid == 0;
    tenant->greeting_until_ns = now_ns() + kGreeting_ns;
    wake_at(tenant->greeting_until_ns, {id, kSocket});
    shares_.enter(user);
    tenants_[id] = std::move(tenant);
    try {
      watch(number, {id, kSocket});
    } catch (const std::system_error& error) {
      send_message(number, {.kind = Kind::refused}, error.what());
      drop(id);
    }
  }
}

// True: it has said nothing more.
bool Daemon::hear(Tenant& tenant) {
  const uint32_t id = tenant.id();
  Message message;
  for (int n = 0; n < kMessages; ++n) {
    const Received received = receive_message(tenant.socket(), message, false);
    if (received == Received::nothing) return true;
    if (received == Received::gone || !answer(tenant, message)) {
      tenant.last_words();
      drop(id);
      return true;
    }
  }
  wake_at(now_ns(), {id, kSocket});  // others first; its descriptor says it once only
  return false;
}

// False: this is no guest.
bool Daemon::answer(Tenant& tenant, Message& message) {
  switch (message.header.kind) {
    case Kind::attach:
      greet(tenant, message);
      return tenant.is_attached();
    case Kind::terms:
      if (tenant.is_attached()) tenant.keep_terms(message.header.slot, std::move(message.text));
      return tenant.is_attached();
    case Kind::move: {
      const auto module = module_named(message.text);
      if (!module || !tenant.may_operate) return false;
      options_.module = *module;
      for (const auto& [id, guest] : tenants_) guest->move_away();
      return send_message(tenant.socket(), {.kind = Kind::told}, status());
    }
    case Kind::status:
      return send_message(tenant.socket(), {.kind = Kind::told}, status());
    default:
      return false;
  }
}

void Daemon::greet(Tenant& tenant, const Message& message) {
  if (tenant.is_attached() || !message.header.sizes.are_fair()) return;
  if (guests() >= options_.max_guests) {
    send_message(tenant.socket(), {.kind = Kind::refused},
                 "as many guests as it takes are attached");
    return;
  }
  try {
    tenant.attach(message.header.sizes);
    activate(tenant);
  } catch (const std::system_error& error) {
    send_message(tenant.socket(), {.kind = Kind::refused}, error.what());
  }
}

void Daemon::drop(uint32_t id) {
  const auto found = tenants_.find(id);
  const std::unique_ptr<Tenant> tenant = std::move(found->second);
  tenants_.erase(found);
  shares_.leave(tenant->user(), tenant.get());
  if (!tenant->fault().empty()) complain_of(*tenant);
}

// A line a second: guests may come to be put out as often as they like.
void Daemon::complain_of(const Tenant& tenant) {
  if (complaints_.wait_until(now_ns()) != kNever) {
    ++unsaid_;
    return;
  }
  complaints_.take(1);
  std::fprintf(stderr, "specedge-stack: a guest of user %s was put out: %s\n",
               tenant.user().c_str(), tenant.fault().c_str());
  if (const uint64_t others = std::exchange(unsaid_, 0))
    std::fprintf(stderr, "specedge-stack: and %llu others before it\n",
                 static_cast<unsigned long long>(others));
}

void Daemon::listens(const Address& address, uint16_t port, Place place) {
  ports_.emplace(port, Port{address, place});
}

void Daemon::listens_no_more(Place place) {
  std::erase_if(ports_, [&](const auto& entry) {
    return entry.second.place.tenant == place.tenant && entry.second.place.slot == place.slot;
  });
}

Place* Daemon::listener_at(const Address& address, uint16_t port) {
  constexpr Address kAny{}, kAny4{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  constexpr Address kLoopback{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  const bool is_v4 = std::equal(kAny4.begin(), kAny4.begin() + 12, address.begin());
  const bool is_loopback = address == kLoopback || (is_v4 && address[12] == 127);
  const auto [first, last] = ports_.equal_range(port);
  for (auto entry = first; entry != last; ++entry) {
    const Address& at = entry->second.address;
    const bool is_any = at == kAny || (at == kAny4 && is_v4);
    if (at == address || (is_any && is_loopback)) return &entry->second.place;
  }
  return nullptr;
}

size_t Daemon::guests() const {
  return size_t(std::count_if(tenants_.begin(), tenants_.end(),
                              [](const auto& entry) { return entry.second->is_attached(); }));
}

std::string Daemon::status() const {
  size_t connections = 0, held_bytes = 0;
  uint64_t elements = 0;
  for (const auto& [id, tenant] : tenants_) {
    connections += tenant->connections();
    held_bytes += tenant->held_bytes();
    elements += tenant->elements();
  }
  const auto number = [](auto value) { return std::to_string(value); };
  std::string text = "{\"module\": \"" + std::string(name_of(options_.module)) +
                     "\", \"guests\": " + number(guests()) +
                     ", \"connections\": " + number(connections) +
                     ", \"held_bytes\": " + number(held_bytes) +
                     ", \"elements\": " + number(elements) + ", \"sent_bytes\": {";
  const char* separator = "";
  for (const auto& [name, user] : shares_.users()) {
    text += separator + ("\"" + name + "\": ") + number(user.sent_bytes);
    separator = ", ";
  }
  return text + "}}";
}

}  // namespace

}  // namespace specedge::stack

int main(int argc, char** argv) {
  using namespace specedge::stack;
  try {
    const Options options = read_options(argc, argv);
    rlimit files{};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    umask(0077);
    std::signal(SIGPIPE, SIG_IGN);
    Daemon daemon(options);
    std::printf("specedge-stack: guests attach at %s\n", options.socket.c_str());
    std::fflush(stdout);
    daemon.run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "specedge-stack: %s\n", error.what());
    return 2;
  }
  return 0;
}
