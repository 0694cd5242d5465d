#include "options.h"

#include <charconv>
#include <sstream>
#include <stdexcept>

namespace specedge::stack {

namespace {

constexpr std::string_view kModules[] = {"shm", "unix", "tcp", "emulated"};

double number(std::string_view name, const char* text, double most) {
  const std::string_view given = text;
  double value = -1;
  const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), value);
  const bool is_whole = error == std::errc{} && end == given.data() + given.size();
  if (!is_whole || !(value >= 0 && value <= most))
    throw std::runtime_error(
        (std::ostringstream() << name << " is " << text << "; expected a number from 0 to " << most)
            .str());
  return value;
}

void set(Options& options, std::string_view name, const char* value) {
  constexpr double kMostBytes = 1e12;
  if (name == "--socket") {
    options.socket = value;
  } else if (name == "--module") {
    const auto module = module_named(value);
    if (!module)
      throw std::runtime_error(std::string("--module is ") + value +
                               "; it takes one of shm, unix, tcp, emulated");
    options.module = *module;
  } else if (name == "--delay-ms") {
    options.shape.delay_ns = int64_t(number(name, value, 10'000) * 1e6);
  } else if (name == "--link-rate") {
    options.shape.bytes_per_s = number(name, value, kMostBytes);
  } else if (name == "--loss") {
    options.shape.loss = number(name, value, 0.5);
  } else if (name == "--rate") {
    options.bytes_per_s = number(name, value, kMostBytes);
  } else if (name == "--user-rate") {
    options.user_bytes_per_s = number(name, value, kMostBytes);
  } else if (name == "--share-by") {
    if (std::string_view(value) != "user" && std::string_view(value) != "process")
      throw std::runtime_error(std::string("--share-by is ") + value +
                               "; it takes user or process");
    options.share_by_process = std::string_view(value) == "process";
  } else if (name == "--coalesce-us") {
    options.coalesce_ns = int64_t(number(name, value, 10'000) * 1e3);
  } else if (name == "--max-guests") {
    options.max_guests = size_t(number(name, value, 16384));
  } else {
    throw std::runtime_error("unknown option " + std::string(name));
  }
}

}  // namespace

std::optional<Module> module_named(std::string_view name) {
  for (size_t i = 0; i < std::size(kModules); ++i)
    if (kModules[i] == name) return Module(i);
  return std::nullopt;
}

std::string_view name_of(Module module) { return kModules[size_t(module)]; }

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--shared") {
      options.is_shared = true;
      continue;
    }
    if (i + 1 == argc) throw std::runtime_error("option " + std::string(name) + " has no value");
    set(options, name, argv[++i]);
  }
  if (options.socket.empty()) throw std::runtime_error("--socket is missing: where guests attach");
  return options;
}

}  // namespace specedge::stack
