// The guest's library for Python.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

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
  const int kind = int(event.kind);
  const auto bytes = [](const auto& from) {
    return py::bytes(reinterpret_cast<const char*>(from.data()), from.size());
  };
  switch (event.kind) {
    case Event::Kind::data:
      return py::make_tuple(kind, event.slot, bytes(event.bytes));
    case Event::Kind::connected:
    case Event::Kind::accepted:
      return py::make_tuple(kind, event.slot, bytes(event.address), event.port, event.listener,
                            bytes(event.certificate), event.is_direct);
    case Event::Kind::listening:
      return py::make_tuple(kind, event.slot, event.port);
    case Event::Kind::closed:
      return py::make_tuple(kind, event.slot, event.status);
    default:
      return py::make_tuple(kind, event.slot);
  }
}

// All that has happened, told at the end: a visitor that calls Python could raise in between.
py::list events_of(Guest& guest) {
  py::list events;
  guest.poll([&](const Event& event) { events.append(tuple_of(event)); });
  return events;
}

// The bytes of an object, which stay where they are as long as this lives.
class Piece {
 public:
  explicit Piece(const py::object& of) {
    if (PyObject_GetBuffer(of.ptr(), &view_, PyBUF_SIMPLE)) throw py::error_already_set();
  }
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;
  ~Piece() { PyBuffer_Release(&view_); }
  operator std::string_view() const {
    return {static_cast<const char*>(view_.buf), size_t(view_.len)};
  }

 private:
  Py_buffer view_;
};

// Plain numbers: to make and compare objects of an enumeration would cost more than all else.
py::object kinds() {
  using Kind = Event::Kind;
  constexpr std::pair<const char*, Kind> all[] = {{"CONNECTED", Kind::connected},
                                                  {"LISTENING", Kind::listening},
                                                  {"ACCEPTED", Kind::accepted},
                                                  {"DATA", Kind::data},
                                                  {"END", Kind::end},
                                                  {"CLOSED", Kind::closed},
                                                  {"WRITABLE", Kind::writable},
                                                  {"LOST", Kind::lost}};
  py::dict numbers;
  for (const auto& [name, kind] : all) numbers[name] = int(kind);
  return py::module_::import("types").attr("SimpleNamespace")(**numbers);
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

  m.attr("Kind") = kinds();

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
      .def("send_frame", [](Guest& guest, uint32_t slot,
                            const py::object& data) { return guest.send_frame(slot, Piece(data)); })
      .def("put_frame", [](Guest& guest, uint32_t slot,
                           const py::object& data) { return guest.put_frame(slot, Piece(data)); })
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
