#include "attach_socket.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "link.h"

namespace specedge::stack {

namespace {

constexpr int kTries = 50;
constexpr timespec kBetween{0, 100'000'000};

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

// A lock of the folder that a path is in, between those who make and remove sockets there.
Descriptor lock_folder(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  Descriptor made(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!made) fail("cannot listen at --socket " + path);
  for (int n = 0; flock(made.get(), LOCK_EX | LOCK_NB); ++n) {
    if (errno != EWOULDBLOCK) fail("cannot lock the folder of --socket " + path);
    if (n == kTries)
      throw std::runtime_error("cannot lock the folder of --socket " + path +
                               ": another program keeps a lock of it");
    nanosleep(&kBetween, nullptr);
  }
  return made;
}

Descriptor new_socket() {
  Descriptor made(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made) fail("a socket");
  return made;
}

}  // namespace

AttachSocket::AttachSocket(const std::string& path, bool is_shared) : path_(path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path)
    throw std::runtime_error("--socket is longer than the " +
                             std::to_string(sizeof name.sun_path - 1) + " characters a name has");
  std::memcpy(name.sun_path, path.c_str(), path.size());
  const auto* address = reinterpret_cast<sockaddr*>(&name);
  const Descriptor lock = lock_folder(path);
  if (!connect(new_socket().get(), address, sizeof name))
    throw std::runtime_error("another specedge-stack has " + path + "; give another --socket");
  if (is_left_over(path)) unlink(path.c_str());
  socket_ = new_socket();
  if (bind(socket_.get(), address, sizeof name) || listen(socket_.get(), 128)) {
    if (errno == EADDRINUSE) throw std::runtime_error("--socket " + path + " is there already");
    fail("cannot listen at --socket " + path);
  }
  if (is_shared && chmod(path.c_str(), 0666)) fail("--socket " + path);
  if (lstat(path.c_str(), &own_)) fail("--socket " + path);
}

AttachSocket::~AttachSocket() {
  try {  // not around the function: what a destructor catches there is thrown again at its end
    const Descriptor lock = lock_folder(path_);
    struct stat now{};
    // unless somebody has removed it, and another daemon has the name now
    if (!lstat(path_.c_str(), &now) && now.st_dev == own_.st_dev && now.st_ino == own_.st_ino)
      unlink(path_.c_str());
  } catch (const std::runtime_error&) {
    // The next daemon removes it.
  }
}

}  // namespace specedge::stack
