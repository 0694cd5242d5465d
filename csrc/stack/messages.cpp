#include "messages.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace specedge::stack {

namespace {

constexpr size_t kMostDescriptors = 3;
union Control {
  char bytes[CMSG_SPACE(kMostDescriptors * sizeof(int))];
  cmsghdr aligned;
};

void take_descriptors(msghdr& packet, std::vector<Descriptor>& into) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&packet); part; part = CMSG_NXTHDR(&packet, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int number;
      std::memcpy(&number, CMSG_DATA(part) + i * sizeof(int), sizeof number);
      into.emplace_back(number);
    }
  }
}

}  // namespace

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}
Descriptor::~Descriptor() {
  if (number_ >= 0) close(number_);
}

bool send_message(int socket, const Header& header, std::string_view text,
                  std::span<const int> descriptors) {
  iovec parts[] = {{const_cast<Header*>(&header), sizeof header},
                   {const_cast<char*>(text.data()), text.size()}};
  msghdr packet{};
  packet.msg_iov = parts;
  packet.msg_iovlen = 2;
  Control control{};
  if (!descriptors.empty()) {
    packet.msg_control = control.bytes;
    packet.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* part = CMSG_FIRSTHDR(&packet);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(part), descriptors.data(), descriptors.size_bytes());
  }
  return sendmsg(socket, &packet, MSG_NOSIGNAL) >= 0;
}

Received receive_message(int socket, Message& message, bool takes_descriptors) {
  message = {};
  message.text.resize(kMessageBytes);
  iovec parts[] = {{&message.header, sizeof message.header},
                   {message.text.data(), message.text.size()}};
  Control control{};
  msghdr packet{};
  packet.msg_iov = parts;
  packet.msg_iovlen = 2;
  if (takes_descriptors) {
    packet.msg_control = control.bytes;
    packet.msg_controllen = sizeof control.bytes;
  }
  ssize_t size = recvmsg(socket, &packet, MSG_CMSG_CLOEXEC);
  // That the other end has gone without reading all is told in front of what it said.
  if (size < 0 && errno == ECONNRESET) size = recvmsg(socket, &packet, MSG_CMSG_CLOEXEC);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return Received::nothing;
  if (size <= 0) return Received::gone;
  if (takes_descriptors) take_descriptors(packet, message.descriptors);
  const bool is_whole = size_t(size) >= sizeof message.header && !(packet.msg_flags & MSG_TRUNC);
  if (!is_whole || message.header.version != kVersion) return Received::gone;
  message.text.resize(size_t(size) - sizeof message.header);
  return Received::message;
}

void ring(int bell) {
  const uint64_t once = 1;
  [[maybe_unused]] const ssize_t written = write(bell, &once, sizeof once);
}

int make_bell() {
  const int bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (bell < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return bell;
}

}  // namespace specedge::stack
