// Module emulated link: another link, behind a network of a delay, a rate and losses. It delays
// bytes, not packets: a lost segment comes one retransmission later, and all behind it wait for it,
// as the receiver of a TCP stream sees it. There is no congestion control in between.
#include <algorithm>
#include <deque>

#include "link.h"

namespace specedge::stack {

namespace {

constexpr size_t kSegment = 1448;
constexpr size_t kQueueBytes = 1 << 20;              // of one direction
constexpr int64_t kRetransmission_ns = 200'000'000;  // Linux's least, on top of the round trip

uint64_t mixed(uint64_t z) {  // splitmix64
  z += 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// One direction: segments, and when each arrives.
class Pipe {
 public:
  Pipe(const Shape& shape, uint64_t seed) : shape_(shape), state_(seed) {}

  size_t room() const { return kQueueBytes - bytes_; }

  void put(const char* data, size_t size, int64_t now) {
    for (size_t at = 0; at < size; at += kSegment)
      put_segment(std::string(data + at, std::min(kSegment, size - at)), now);
  }

  // What has arrived by now; null if nothing has.
  std::string* arrived(int64_t now) {
    return !segments_.empty() && segments_.front().due_ns <= now ? &segments_.front().bytes
                                                                 : nullptr;
  }
  void took(size_t size) {
    bytes_ -= size;
    std::string& first = segments_.front().bytes;
    if (size == first.size())
      segments_.pop_front();
    else
      first.erase(0, size);
  }
  bool is_empty() const { return segments_.empty(); }
  int64_t due_ns() const { return segments_.empty() ? kNever : segments_.front().due_ns; }

 private:
  struct Segment {
    std::string bytes;
    int64_t due_ns;
  };

  void put_segment(std::string bytes, int64_t now) {
    free_ns_ = std::max(free_ns_, now);
    if (shape_.bytes_per_s) free_ns_ += int64_t(double(bytes.size()) / shape_.bytes_per_s * 1e9);
    int64_t due = free_ns_ + shape_.delay_ns;
    if (shape_.loss) {
      state_ = mixed(state_);
      const bool is_lost = double(state_ >> 11) * 0x1p-53 < shape_.loss;
      if (is_lost) due += kRetransmission_ns + 2 * shape_.delay_ns;
    }
    last_ns_ = std::max(last_ns_, due);
    bytes_ += bytes.size();
    segments_.push_back({std::move(bytes), last_ns_});
  }

  Shape shape_;
  uint64_t state_;
  std::deque<Segment> segments_;
  size_t bytes_ = 0;
  int64_t free_ns_ = 0, last_ns_ = 0;
};

class EmulatedLink : public Link {
 public:
  EmulatedLink(std::unique_ptr<Link> link, const Shape& shape, uint64_t seed)
      : link_(std::move(link)), out_(shape, mixed(seed)), in_(shape, mixed(~seed)) {}

  int descriptor() const override { return link_->descriptor(); }
  int open() override { return link_->open(); }
  std::string certificate() const override { return link_->certificate(); }

  ssize_t write(const char* data, size_t size) override {
    if (const ssize_t status = push(); status < 0) return status;
    const size_t taken = std::min(size, out_.room());
    out_.put(data, taken, now_ns());
    return ssize_t(taken);
  }

  ssize_t read(char* data, size_t size) override {
    if (const ssize_t status = push(); status < 0) return status;
    pull();
    if (std::string* bytes = in_.arrived(now_ns())) {
      const size_t got = std::min(size, bytes->size());
      std::copy_n(bytes->data(), got, data);
      in_.took(got);
      return ssize_t(got);
    }
    return in_.is_empty() ? ended_ : kNothing;
  }

  ssize_t push() override {
    is_blocked_ = false;
    while (std::string* bytes = out_.arrived(now_ns())) {
      const ssize_t taken = link_->write(bytes->data(), bytes->size());
      if (taken < 0) return taken;
      if ((is_blocked_ = !taken)) break;
      out_.took(size_t(taken));
    }
    return 0;
  }

  bool end() override { return push() < 0 || (out_.is_empty() && link_->end()); }
  int64_t due_ns() const override {
    return is_blocked_ ? in_.due_ns() : std::min(out_.due_ns(), in_.due_ns());
  }

 private:
  void pull() {
    char buffer[16 << 10];
    while (ended_ == kNothing && in_.room() >= sizeof buffer) {
      const ssize_t got = link_->read(buffer, sizeof buffer);
      if (got == kNothing) return;
      if (got > 0)
        in_.put(buffer, size_t(got), now_ns());
      else
        ended_ = got;
    }
  }

  std::unique_ptr<Link> link_;
  Pipe out_, in_;
  ssize_t ended_ = kNothing;  // what is told when everything has arrived
  bool is_blocked_ = false;   // the descriptor will say when it takes more
};

}  // namespace

std::unique_ptr<Link> emulated_link(std::unique_ptr<Link> link, Shape shape, uint64_t seed) {
  return std::make_unique<EmulatedLink>(std::move(link), shape, seed);
}

}  // namespace specedge::stack
