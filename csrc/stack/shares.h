// Whose turn it is to send: deficit round robin over users (Shreedhar and Varghese, SIGCOMM 1995),
// whatever the number of their guests and connections, and a token bucket for each and for all.
// Knows no sockets and no memory; the time is an argument.
#pragma once
#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "element.h"

namespace specedge::stack {

// Bytes that may be sent: `rate` more every second, 20 ms of them at once. Rate 0: any.
class Bucket {
 public:
  explicit Bucket(double bytes_per_s = 0) : rate_(bytes_per_s) {}
  // When there is something in it again; kNever if there is now, or always.
  int64_t wait_until(int64_t now_ns);
  void take(uint32_t bytes) { level_ -= rate_ ? bytes : 0; }

 private:
  double rate_, level_ = 0;
  int64_t filled_ns_ = 0;
};

// One that wants to send: a guest's send ring.
class Sender {
 public:
  virtual ~Sender() = default;
  virtual uint32_t next_bytes() = 0;  // that its next element costs; 0: nothing to send
  virtual void send_next() = 0;
};

class Shares {
 public:
  Shares(double bytes_per_s, double user_bytes_per_s)
      : all_(bytes_per_s), user_bytes_per_s_(user_bytes_per_s) {}

  void enter(const std::string& user);                        // one guest more of this user
  void want(const std::string& user, Sender* sender);         // it has something to send
  void leave(const std::string& user, const Sender* sender);  // a guest has gone

  // Send as long as somebody may, `budget` bytes at most; when there is more to do: 0 for now,
  // kNever for not before somebody wants.
  int64_t serve(int64_t now_ns, uint64_t budget);

  struct User {
    Bucket bucket;
    int guests = 0;
    uint64_t sent_bytes = 0;
    int64_t deficit = 0;
    std::deque<Sender*> senders;  // that want to send, in turn
  };
  const std::map<std::string, User>& users() const { return users_; }

 private:
  uint64_t serve_user(User& user, uint64_t budget);

  Bucket all_;
  double user_bytes_per_s_;
  std::map<std::string, User> users_;
  std::deque<std::string> turns_;  // of users with senders
};

}  // namespace specedge::stack
