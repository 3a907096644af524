#include "sherd/engine/executors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "sherd/base/bytes.h"
#include "sherd/shard/layout.h"

namespace sherd {
namespace {

double cost(const SpreadMatrix& m) {
  const auto least = static_cast<double>(std::min(m.rows, m.columns));
  return least * least * static_cast<double>(std::max(m.rows, m.columns));
}

class Round {
 public:
  Round(Transport& transport, std::vector<SpreadMatrix*> matrices)
      : transport_(transport), matrices_(std::move(matrices)) {
    for (const auto* m : matrices_)
      piece_ = std::max(piece_, ceil_div(m->rows, transport.size()) * m->columns);
    send_ = at::zeros({piece_ * transport.size()}, at::kFloat);
    received_ = at::empty_like(send_);
  }

  void run(const std::function<at::Tensor(const at::Tensor&)>& work) {
    for (size_t k = 0; k < matrices_.size(); ++k) piece(send_, k, matrices_[k]->own.numel()).copy_(matrices_[k]->own);
    exchange();
    const auto me = static_cast<size_t>(transport_.rank());
    if (me < matrices_.size()) execute(*matrices_[me], work);
    exchange();
    for (size_t k = 0; k < matrices_.size(); ++k)
      matrices_[k]->own.copy_(piece(received_, k, matrices_[k]->own.numel()));
  }

 private:
  at::Tensor piece(const at::Tensor& of, size_t rank, int64_t elements) const {
    return of.narrow(0, static_cast<int64_t>(rank) * piece_, elements);
  }
  void exchange() { transport_.all_to_all(send_, received_, "matrices").wait(); }

  void execute(const SpreadMatrix& m, const std::function<at::Tensor(const at::Tensor&)>& work) {
    const at::Tensor whole = at::empty({m.rows, m.columns}, at::kFloat);
    const auto for_each_rank = [&](const auto& body) {
      for (int r = 0; r < transport_.size(); ++r) {
        const Rows rows = rows_of_rank(m.rows, r, transport_.size());
        if (rows.count > 0) body(static_cast<size_t>(r), rows);
      }
    };
    for_each_rank([&](size_t r, Rows rows) {
      whole.narrow(0, rows.first, rows.count).view(-1).copy_(piece(received_, r, rows.count * m.columns));
    });
    const at::Tensor result = work(whole);
    for_each_rank([&](size_t r, Rows rows) {
      piece(send_, r, rows.count * m.columns).copy_(result.narrow(0, rows.first, rows.count).reshape(-1));
    });
  }

  Transport& transport_;
  std::vector<SpreadMatrix*> matrices_;
  int64_t piece_ = 0;
  at::Tensor send_, received_;
};

}  // namespace

void run_on_executors(Transport& transport, std::vector<SpreadMatrix>& matrices,
                      const std::function<at::Tensor(const at::Tensor&)>& work) {
  if (transport.size() == 1) {
    for (auto& m : matrices) m.own.copy_(work(m.own.view({m.rows, m.columns})).reshape(-1));
    return;
  }
  std::vector<SpreadMatrix*> order;
  for (auto& m : matrices) order.push_back(&m);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return cost(*a) > cost(*b); });
  const auto ranks = static_cast<size_t>(transport.size());
  for (size_t first = 0; first < order.size(); first += ranks) {
    const size_t count = std::min(ranks, order.size() - first);
    const auto begin = order.begin() + static_cast<std::ptrdiff_t>(first);
    Round(transport, {begin, begin + static_cast<std::ptrdiff_t>(count)}).run(work);
  }
}

}  // namespace sherd
