// The socket where guests attach. Of daemons that start at once one has it; it goes with its owner.
#pragma once
#include <sys/stat.h>

#include <string>

#include "messages.h"

namespace specedge::stack {

class AttachSocket {
 public:
  // is_shared: other users of this host may attach. Throws std::runtime_error with a sentence.
  AttachSocket(const std::string& path, bool is_shared);
  AttachSocket(const AttachSocket&) = delete;
  ~AttachSocket();
  int get() const { return socket_.get(); }

 private:
  const std::string path_;
  Descriptor socket_;
  struct stat own_{};
};

}  // namespace specedge::stack
