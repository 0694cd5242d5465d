// The daemon's options. `python -m runtime.stack` has the same ones, with help.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "tenant.h"

namespace specedge::stack {

struct Options {
  std::string socket;           // where guests attach
  Module module = Module::shm;  // between guests of this host; emulated: to all others as well
  Shape shape;
  double bytes_per_s = 0;         // that all guests send together; 0: no limit
  double user_bytes_per_s = 0;    // that the guests of one user send
  bool share_by_process = false;  // each guest is a user of its own
  bool is_shared = false;         // other users of this host may attach
  int64_t coalesce_ns = 0;        // between two looks while several guests are active
  size_t max_guests = 256;
};

std::optional<Module> module_named(std::string_view name);
std::string_view name_of(Module module);

// Throws std::runtime_error with a sentence.
Options read_options(int argc, char** argv);

}  // namespace specedge::stack
