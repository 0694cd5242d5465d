#include "shares.h"

#include <algorithm>

namespace specedge::stack {

namespace {
constexpr int64_t kQuantum = kFrameBytes;
constexpr double kBurst_s = 0.02;
}  // namespace

int64_t Bucket::wait_until(int64_t now_ns) {
  if (!rate_) return kNever;
  const double most = std::max(rate_ * kBurst_s, 1.0);
  const double gained = filled_ns_ ? rate_ * double(now_ns - filled_ns_) * 1e-9 : most;
  level_ = std::min(level_ + gained, most);
  filled_ns_ = now_ns;
  return level_ > 0 ? kNever : now_ns + int64_t((1 - level_) / rate_ * 1e9) + 1;
}

void Shares::enter(const std::string& name) {
  const auto [user, is_new] = users_.try_emplace(name);
  if (is_new) user->second.bucket = Bucket(user_bytes_per_s_);
  ++user->second.guests;
}

void Shares::want(const std::string& name, Sender* sender) {
  User& user = users_.at(name);
  if (std::find(user.senders.begin(), user.senders.end(), sender) != user.senders.end()) return;
  if (user.senders.empty()) turns_.push_back(name);
  user.senders.push_back(sender);
}

void Shares::leave(const std::string& name, const Sender* sender) {
  User& user = users_.at(name);
  std::erase(user.senders, sender);
  if (user.senders.empty()) std::erase(turns_, name);
  if (!--user.guests) users_.erase(name);
}

int64_t Shares::serve(int64_t now_ns, uint64_t budget) {
  int64_t due_ns = kNever;
  for (size_t waiting = 0; budget && waiting < turns_.size();) {
    if (const int64_t when = all_.wait_until(now_ns); when != kNever) return when;
    const std::string name = turns_.front();
    turns_.pop_front();
    User& user = users_.at(name);
    const int64_t when = user.bucket.wait_until(now_ns);
    if (when != kNever) {
      due_ns = std::min(due_ns, when);
      turns_.push_back(name);
      ++waiting;
      continue;
    }
    waiting = 0;
    budget -= std::min(budget, serve_user(user, budget));
    if (!user.senders.empty()) turns_.push_back(name);
  }
  return budget ? due_ns : 0;
}

// One turn: a quantum, and what was left of the last one. Who has nothing to send keeps nothing.
uint64_t Shares::serve_user(User& user, uint64_t budget) {
  uint64_t sent = 0;
  user.deficit += kQuantum;
  while (!user.senders.empty() && sent < budget) {
    Sender* sender = user.senders.front();
    const uint32_t bytes = sender->next_bytes();
    if (!bytes) {
      user.senders.pop_front();
      continue;
    }
    if (user.deficit < bytes) return sent;
    sender->send_next();
    user.deficit -= bytes;
    user.bucket.take(bytes);
    all_.take(bytes);
    sent += bytes;
    user.sent_bytes += bytes;
    std::rotate(user.senders.begin(), user.senders.begin() + 1, user.senders.end());
  }
  if (user.senders.empty()) user.deficit = 0;
  return sent;
}

}  // namespace specedge::stack
