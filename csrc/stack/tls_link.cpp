// TLS 1.3 over a socket, ended in the daemon: guests see what was encrypted.
#include "link.h"

#ifndef SPECEDGE_TLS

namespace specedge::stack {
std::unique_ptr<Tls> make_tls(const std::string&, uint8_t& status) {
  status = kTlsMissing;
  return nullptr;
}
}  // namespace specedge::stack

#else

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <cerrno>

namespace specedge::stack {

namespace {

template <typename T, void (*Free)(T*)>
struct Freed {
  void operator()(T* value) const { Free(value); }
};
using Context = std::unique_ptr<SSL_CTX, Freed<SSL_CTX, SSL_CTX_free> >;
using Session = std::unique_ptr<SSL, Freed<SSL, SSL_free> >;
using Certificate = std::unique_ptr<X509, Freed<X509, X509_free> >;
using Key = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY, EVP_PKEY_free> >;
struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;

int no_passphrase(char*, int, int, void*) { return -1; }

Bio reader(const std::string& text) { return Bio(BIO_new_mem_buf(text.data(), int(text.size()))); }

Certificate next_certificate(BIO* from) {
  return Certificate(PEM_read_bio_X509(from, nullptr, no_passphrase, nullptr));
}

bool use_certificate(SSL_CTX* context, const std::string& pem) {
  Bio chain = reader(pem), secret = reader(pem);
  Certificate own = next_certificate(chain.get());
  Key key(PEM_read_bio_PrivateKey(secret.get(), nullptr, no_passphrase, nullptr));
  if (!own || !key || SSL_CTX_use_certificate(context, own.get()) != 1) return false;
  while (Certificate next = next_certificate(chain.get()))
    if (SSL_CTX_add1_chain_cert(context, next.get()) != 1) return false;
  return SSL_CTX_use_PrivateKey(context, key.get()) == 1;
}

bool trust(SSL_CTX* context, const std::string& whom) {
  if (whom == "pinned") return true;
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  if (whom == "system") return SSL_CTX_set_default_verify_paths(context) == 1;
  Bio authorities = reader(whom);
  int count = 0;
  for (; Certificate next = next_certificate(authorities.get()); ++count)
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), next.get());
  return count > 0;
}

uint8_t failure(const SSL* session) {
  const unsigned long error = ERR_get_error();
  if (SSL_get_verify_result(session) != X509_V_OK) return kUntrusted;
  switch (ERR_GET_REASON(error)) {
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_UNKNOWN_PROTOCOL:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_UNEXPECTED_MESSAGE:
      return kNoTls;
    default:
      return kTlsFailed;
  }
}

class TlsLink : public Link {
 public:
  TlsLink(std::unique_ptr<Link> socket, Session session)
      : socket_(std::move(socket)), session_(std::move(session)) {
    SSL_set_fd(session_.get(), socket_->descriptor());
  }

  int descriptor() const override { return socket_->descriptor(); }

  int open() override {
    if (const int state = socket_->open(); state != 1) return state;
    ERR_clear_error();
    const int done = SSL_do_handshake(session_.get());
    return done == 1 ? 1 : is_waiting(done) ? 0 : -int(failure(session_.get()));
  }

  ssize_t write(const char* data, size_t size) override {
    ERR_clear_error();
    // Copied first: a guest can change its memory between two reads of it.
    const size_t most = std::min(size, sizeof copy_);
    std::copy_n(data, most, copy_);
    const int taken = SSL_write(session_.get(), copy_, int(most));
    return taken > 0 ? taken : is_waiting(taken) ? 0 : -kTlsFailed;
  }

  ssize_t read(char* data, size_t size) override {
    ERR_clear_error();
    const int got = SSL_read(session_.get(), data, int(size));
    if (got > 0) return got;
    const int error = SSL_get_error(session_.get(), got);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return kNothing;
    if (error == SSL_ERROR_ZERO_RETURN) return 0;
    if (error == SSL_ERROR_SYSCALL && errno) return -errno;
    const bool is_cut = ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
    return is_cut ? 0 : -kTlsFailed;
  }

  bool end() override {
    ERR_clear_error();
    SSL_shutdown(session_.get());
    return socket_->end();
  }

  std::string certificate() const override {
    Certificate peer(SSL_get1_peer_certificate(session_.get()));
    unsigned char hash[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (!peer || !X509_digest(peer.get(), EVP_sha256(), hash, &size)) return {};
    return {reinterpret_cast<char*>(hash), size};
  }

 private:
  bool is_waiting(int result) const {
    const int error = SSL_get_error(session_.get(), result);
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
  }

  std::unique_ptr<Link> socket_;
  Session session_;
  char copy_[16 << 10];
};

class OpenSsl : public Tls {
 public:
  OpenSsl(Context context, bool is_server, std::string name)
      : context_(std::move(context)), is_server_(is_server), name_(std::move(name)) {}

  std::unique_ptr<Link> over(Descriptor socket, bool is_open) override {
    Session session(SSL_new(context_.get()));
    if (!session) return nullptr;
    if (is_server_) {
      SSL_set_accept_state(session.get());
    } else {
      SSL_set_connect_state(session.get());
      X509_VERIFY_PARAM* checked = SSL_get0_param(session.get());
      if (!X509_VERIFY_PARAM_set1_ip_asc(checked, name_.c_str())) {
        SSL_set_tlsext_host_name(session.get(), name_.c_str());
        if (SSL_set1_host(session.get(), name_.c_str()) != 1) return nullptr;
      }
    }
    return std::make_unique<TlsLink>(socket_link(std::move(socket), is_open), std::move(session));
  }

 private:
  Context context_;
  bool is_server_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Tls> make_tls(const std::string& terms, uint8_t& status) {
  status = kBadTerms;
  Context context(SSL_CTX_new(TLS_method()));
  if (!context) return nullptr;
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  const size_t line = terms.find('\n');
  const std::string role = terms.substr(0, line);
  if (line == std::string::npos) return nullptr;
  if (role == "server") {
    SSL_CTX_set_num_tickets(context.get(), 0);
    if (!use_certificate(context.get(), terms.substr(line + 1))) return nullptr;
    return std::make_unique<OpenSsl>(std::move(context), true, "");
  }
  const size_t next = terms.find('\n', line + 1);
  if (role != "client" || next == std::string::npos) return nullptr;
  if (!trust(context.get(), terms.substr(next + 1))) return nullptr;
  const std::string name = terms.substr(line + 1, next - line - 1);
  return std::make_unique<OpenSsl>(std::move(context), false, name);
}

}  // namespace specedge::stack

#endif
