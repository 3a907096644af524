#include "sherd/comm/transport.h"

#include "sherd/base/error.h"

namespace sherd {

Pending& Pending::operator=(Pending&& other) noexcept {
  std::swap(wait_, other.wait_);
  return *this;
}

Pending::~Pending() {
  try {
    wait();
  } catch (...) {  // The error belongs to whoever waits; nobody did.
  }
}

void Pending::wait() {
  if (const auto wait = std::exchange(wait_, nullptr)) wait();
}

void Transport::abort(std::string_view cause) noexcept {
  standing_->interrupted = true;
  tell_abort(cause);
}

void Transport::recover() {
  run_recovery();
  standing_->interrupted = false;
  ++standing_->recoveries;
}

void Transport::resume() {
  if (standing_->interrupted) recover();
}

int Transport::place_among(const std::vector<int>& ranks) const {
  SHERD_CHECK(!ranks.empty() && ranks.front() >= 0 && ranks.back() < size_);
  SHERD_CHECK(std::adjacent_find(ranks.begin(), ranks.end(), std::greater_equal<>()) == ranks.end());
  const auto mine = std::find(ranks.begin(), ranks.end(), rank_);
  SHERD_CHECK(mine != ranks.end());
  return static_cast<int>(mine - ranks.begin());
}

std::vector<double> Transport::exchange_for(std::string_view purpose, std::span<const double> values) {
  const auto restore = [this](void*) { purpose_ = {}; };
  const std::unique_ptr<void, decltype(restore)> guard(this, restore);
  purpose_ = purpose;
  return exchange(values);
}

std::string_view Transport::say(std::string_view call) {
  const std::string_view before = std::exchange(standing_->call, call);
  if (before.data() != call.data()) show_call();
  return before;
}

void barrier(Transport& transport, std::string_view purpose) { transport.exchange_for(purpose, {}); }

namespace {

class Solo : public Transport {
 public:
  Solo() : Transport(0, 1) {}
  std::string_view name() const override { return "solo"; }
  std::vector<double> exchange(std::span<const double> values) override { return {values.begin(), values.end()}; }
  Pending all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view) override {
    whole.copy_(shard);
    return {};
  }
  Pending all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view) override {
    received.copy_(send);
    return {};
  }
  std::shared_ptr<Transport> subgroup(const std::vector<int>& ranks) override {
    place_among(ranks);
    return solo_transport();
  }

 private:
  void tell_abort(std::string_view) noexcept override {}
  void run_recovery() override {}
};

}  // namespace

std::unique_ptr<Transport> solo_transport() { return std::make_unique<Solo>(); }

}  // namespace sherd
