#include "region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <system_error>
#include <utility>

namespace specedge::stack {

namespace {

constexpr size_t kPage = 4096;

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
size_t ring_bytes(uint32_t capacity) {
  return whole_pages(sizeof(RingHeader) + capacity * sizeof(Cell));
}
[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

size_t Region::bytes(Sizes sizes) {
  return 2 * ring_bytes(sizes.control) + 2 * ring_bytes(sizes.data) + 2 * size_t(sizes.arena_bytes);
}

int Region::make(Sizes sizes) {
  const int descriptor = memfd_create("specedge-stack", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0) fail("memfd_create");
  constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (ftruncate(descriptor, off_t(bytes(sizes))) || fcntl(descriptor, F_ADD_SEALS, seals)) {
    close(descriptor);
    fail("memory to share");
  }
  return descriptor;
}

Region::Region(int descriptor, Sizes sizes) : sizes_(sizes) {
  void* memory = mmap(nullptr, bytes(sizes), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) fail("memory to share");
  memory_ = static_cast<char*>(memory);
}

Region::Region(Region&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)), sizes_(other.sizes_) {}

Region& Region::operator=(Region&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(sizes_, other.sizes_);
  return *this;
}

Region::~Region() {
  if (memory_) munmap(memory_, bytes(sizes_));
}

uint32_t Region::capacity(Ring ring) const {
  return ring <= Ring::completion ? sizes_.control : sizes_.data;
}

RingHeader* Region::header(Ring ring) const {
  const size_t control = ring_bytes(sizes_.control), data = ring_bytes(sizes_.data);
  const size_t at[] = {0, control, 2 * control, 2 * control + data};
  return reinterpret_cast<RingHeader*>(memory_ + at[int(ring)]);
}

char* Region::arena(Ring ring) const {
  char* first = memory_ + bytes(sizes_) - 2 * size_t(sizes_.arena_bytes);
  return ring == Ring::send ? first : first + sizes_.arena_bytes;
}

Producer Region::producer(Ring ring) const {
  RingHeader* found = header(ring);
  return {found, reinterpret_cast<Cell*>(found + 1), capacity(ring)};
}

Consumer Region::consumer(Ring ring) const {
  RingHeader* found = header(ring);
  return {found, reinterpret_cast<Cell*>(found + 1), capacity(ring)};
}

DataProducer Region::data_producer(Ring ring) const {
  RingHeader* found = header(ring);
  const Producer made(found, reinterpret_cast<Cell*>(found + 1), capacity(ring), arena(ring));
  return {made, sizes_.arena_bytes};
}

DataConsumer Region::data_consumer(Ring ring) const {
  return {consumer(ring), arena(ring), sizes_.arena_bytes};
}

}  // namespace specedge::stack
