// What goes over the Unix socket between guest and daemon: whatever is rare, or too long for an
// element, or a descriptor. A message is a header and a text, in one packet.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "region.h"

namespace specedge::stack {

constexpr size_t kMessageBytes = 60 << 10;

// A descriptor that is closed with its owner.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }

 private:
  int number_ = -1;
};

enum class Kind : uint32_t {
  // from a guest
  attach = 1,  // sizes
  terms,       // slot, text: of the TLS connection or port that the next job asks for
  move,        // text: the module that is to be used from now on
  status,
  // from the daemon
  attached,     // sizes as granted; memory, the daemon's bell, the guest's bell
  refused,      // text: why, or that it was done
  told,         // text: the status
  direct,       // slot; memory, own bell, the peer's bell
  certificate,  // slot, text: the SHA-256 of the peer's certificate
};

struct Header {
  Kind kind{};
  uint32_t version = kVersion;
  uint32_t slot = 0;
  uint32_t is_first = 0;  // direct: whose send ring is the memory's send ring
  Sizes sizes{};
};

struct Message {
  Header header;
  std::string text;
  std::vector<Descriptor> descriptors;
};

// False: it cannot be sent now, or ever.
bool send_message(int socket, const Header& header, std::string_view text = {},
                  std::span<const int> descriptors = {});

enum class Received { message, nothing, gone };
// Descriptors are taken from who is trusted alone. A packet that is no message counts as gone.
Received receive_message(int socket, Message& message, bool takes_descriptors);

// Ring a bell.
void ring(int bell);
int make_bell();  // throws std::system_error

}  // namespace specedge::stack
