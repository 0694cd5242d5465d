// The guest's library for Python.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "guest.h"

namespace py = pybind11;
using namespace specedge::stack;

namespace {

Address address_of(const std::string& bytes) {
  if (bytes.size() != std::tuple_size<Address>())
    throw py::value_error("an address has 16 bytes, got " + std::to_string(bytes.size()));
  Address address;
  std::memcpy(address.data(), bytes.data(), address.size());
  return address;
}

// An event: kind, slot and, by its kind, what runtime/stack/_stack.pyi says.
py::tuple tuple_of(const Event& event) {
  const auto bytes = [](const auto& from) {
    return py::bytes(reinterpret_cast<const char*>(from.data()), from.size());
  };
  switch (event.kind) {
    case Event::Kind::data:
      return py::make_tuple(event.kind, event.slot, bytes(event.bytes));
    case Event::Kind::connected:
    case Event::Kind::accepted:
      return py::make_tuple(event.kind, event.slot, bytes(event.address), event.port,
                            event.listener, bytes(event.certificate), event.is_direct);
    case Event::Kind::listening:
      return py::make_tuple(event.kind, event.slot, event.port);
    case Event::Kind::closed:
      return py::make_tuple(event.kind, event.slot, event.status);
    default:
      return py::make_tuple(event.kind, event.slot);
  }
}

// All that has happened, told at the end: a visitor that calls Python could raise in between.
py::list events_of(Guest& guest) {
  py::list events;
  guest.poll([&](const Event& event) { events.append(tuple_of(event)); });
  return events;
}

std::string_view piece_of(const py::buffer& data) {
  const py::buffer_info bytes = data.request();
  if (bytes.ndim != 1 || bytes.strides[0] != bytes.itemsize)
    throw py::value_error("a frame is one piece of bytes");
  return {static_cast<const char*>(bytes.ptr), size_t(bytes.size * bytes.itemsize)};
}

}  // namespace

PYBIND11_MODULE(_stack, m) {
  m.doc() = "A guest of specedge-stack; see csrc/stack/guest.h.";

  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const std::system_error& error) {
      PyErr_SetObject(PyExc_OSError,
                      py::make_tuple(error.code().value(), error.code().message()).ptr());
    } catch (const std::out_of_range&) {
      PyErr_SetString(PyExc_ValueError, "there is no such slot");
    }
  });

  py::enum_<Event::Kind>(m, "Kind")
      .value("CONNECTED", Event::Kind::connected)
      .value("LISTENING", Event::Kind::listening)
      .value("ACCEPTED", Event::Kind::accepted)
      .value("DATA", Event::Kind::data)
      .value("END", Event::Kind::end)
      .value("CLOSED", Event::Kind::closed)
      .value("WRITABLE", Event::Kind::writable)
      .value("LOST", Event::Kind::lost);

  py::class_<Guest>(m, "Guest")
      .def(py::init([](const std::string& path) { return std::make_unique<Guest>(path); }),
           py::call_guard<py::gil_scoped_release>())
      .def("fileno", &Guest::descriptor)
      .def("connect",
           [](Guest& guest, const std::string& address, uint16_t port, const std::string& terms) {
             return guest.connect(address_of(address), port, terms);
           })
      .def("listen",
           [](Guest& guest, const std::string& address, uint16_t port, const std::string& terms) {
             return guest.listen(address_of(address), port, terms);
           })
      .def("renew", &Guest::renew)
      .def("accept", [](Guest& guest, uint32_t listener) { guest.accept(listener); })
      .def("send_frame",
           [](Guest& guest, uint32_t slot, const py::buffer& data) {
             return guest.send_frame(slot, piece_of(data));
           })
      .def("put_frame",
           [](Guest& guest, uint32_t slot, const py::buffer& data) {
             return guest.put_frame(slot, piece_of(data));
           })
      .def("flush", &Guest::flush)
      .def("end", &Guest::end)
      .def("close", &Guest::close)
      .def("abort", &Guest::abort)
      .def("pause", &Guest::pause)
      .def("resume", &Guest::resume)
      .def("poll", &events_of)
      .def("detach", &Guest::detach);

  m.def("status", [](const std::string& path) { return ask_daemon(path, Kind::status); });
  m.def("move", [](const std::string& path, const std::string& module) {
    return ask_daemon(path, Kind::move, module);
  });
}
