#include "sherd/comm/host_segment.h"

#include <fmt/ranges.h>
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "sherd/base/error.h"
#include "sherd/base/fnv.h"
#include "sherd/comm/host_board.h"
#include "sherd/comm/local_socket.h"

namespace sherd {
namespace {

std::string random_name() {
  std::random_device random;
  return fmt::format("sherd-{:08x}{:08x}{:08x}", random(), random(), random());
}

// A tensor without elements may have no address, which memcpy does not take.
void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

std::string text_of(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

std::shared_ptr<HostSegment> HostSegment::connect(const World& all) {
  if (all.size > kMaxRanks) return nullptr;
  const World world = with_fresh_store(all, "host");
  auto& store = *world.store;
  UniqueFd listener, to_root;
  if (world.rank == 0) {
    const std::string name = random_name();
    listener = listen_abstract(name);
    store.set("name", name);
  } else {
    to_root = connect_abstract(text_of(store.get("name")));
  }
  const bool reached = world.rank == 0 || to_root;
  const std::vector<std::string> all_say = gather_texts(world, "reached", reached ? "on " + world.host : "no");
  if (!reached || std::any_of(all_say.begin(), all_say.end(), [&](const auto& text) { return text != all_say[0]; }))
    return nullptr;

  std::vector<UniqueFd> sockets(static_cast<size_t>(world.size));
  if (world.rank != 0) {
    set_receive_timeout(to_root.get(), world.timeout);
    send_number(to_root.get(), world.rank, "its greeting to rank 0");
    int64_t bytes = 0;
    UniqueFd fd = receive_fd(to_root.get(), bytes);
    sockets[0] = std::move(to_root);
    return std::shared_ptr<HostSegment>(
        new HostSegment(world, std::move(sockets), SharedMemory::adopt(std::move(fd), bytes)));
  }
  SharedMemory board = SharedMemory::create(Board::bytes_for(world.size));
  for (int connected = 1; connected < world.size; ++connected) {
    UniqueFd peer = accept_same_user(listener.get(), world.timeout);
    set_receive_timeout(peer.get(), world.timeout);
    const int64_t r = receive_number(peer.get(), "its greeting");
    if (r < 1 || r >= world.size) fault(kHostTransport, "a peer greets as rank {} of {}", r, world.size);
    send_fd(peer.get(), board.fd(), board.bytes());
    sockets[static_cast<size_t>(r)] = std::move(peer);
  }
  return std::shared_ptr<HostSegment>(new HostSegment(world, std::move(sockets), std::move(board)));
}

HostSegment::HostSegment(const World& world, std::vector<UniqueFd> sockets, SharedMemory board)
    : Transport(world.rank, Topology::one_host(world.size, Topology::Memory::shared)),
      world_(world),
      sockets_(std::move(sockets)),
      board_memory_(std::move(board)),
      board_mapping_(board_memory_.map_writable(0, board_memory_.bytes())),
      board_(reinterpret_cast<Board*>(board_mapping_.data())) {
  // A fresh segment is zero: every counter starts at 0. Peers learn each other's process numbers in the first exchange.
  watch_ = PeerWatch(exchange(getpid()));
}

HostSegment::~HostSegment() {
  if (first_) std::erase(first_->subgroups_, this);
  finish();
}

void HostSegment::finish() noexcept {
  if (first_) return;
  board_->ranks[rank()].where.end = Whereabouts::End::finished;
  notify();
}

void HostSegment::drop_staging() {
  staging_ = Mapping();
  staging_memory_ = SharedMemory();
}

std::shared_ptr<Transport> HostSegment::make_subgroup(const std::vector<int>& ranks, int place) {
  World world = world_;
  world.rank = place;
  world.size = static_cast<int>(ranks.size());
  world = with_fresh_store(world, fmt::format("group/{}", fmt::join(ranks, ",")));
  auto group = connect(world);
  if (!group) fault(kHostTransport, "ranks {} of one host cannot reach each other any more", fmt::join(ranks, ","));
  group->first_ = first().shared_from_this();
  for (const int rank : ranks) group->members_.push_back(in_first(rank));
  group->watch_ = PeerWatch();  // the first's watches them all
  first().subgroups_.push_back(group.get());
  return group;
}

void HostSegment::exchange_chunk(std::span<const std::byte> mine, std::span<std::byte> all, size_t stride) {
  forget_interrupted();
  check_peers(std::nullopt, "an exchange", Heed::aborts);
  // Two mailboxes suffice: a rank writes exchange k+2 only after all have published k+1, and so have read k.
  const uint64_t turn = ++exchanges_;
  copy_bytes(board_->mailbox[rank()][turn % 2], mine.data(), static_cast<int64_t>(mine.size()));
  Fnv meeting;
  meeting.add(purpose());
  meeting.add(mine.size());
  board_->ranks[rank()].where.meeting[turn % 2].store(meeting.value(), std::memory_order_relaxed);
  board_->ranks[rank()].exchanged.store(turn, std::memory_order_release);
  notify();
  for (int r = 0; r < size(); ++r) {
    const auto& line = board_->ranks[r];
    wait_for(
        r, [&] { return line.exchanged.load(std::memory_order_acquire) >= turn; }, "an exchange");
    copy_bytes(all.data() + static_cast<size_t>(r) * stride, board_->mailbox[r][turn % 2],
               static_cast<int64_t>(mine.size()));
  }
  compare_purposes(turn);
}

// All ranks compare, and all find somebody who differs.
void HostSegment::compare_purposes(uint64_t turn) {
  const auto meeting = [&](int r) { return board_->ranks[r].where.meeting[turn % 2].load(); };
  for (int r = 0; r < size(); ++r) {
    if (meeting(r) == meeting(rank())) continue;
    check_peers(std::nullopt, "an exchange", Heed::aborts);  // the first who has noticed still saw the others there
    const std::string places = who_is_where(r);
    give_up(
        fmt::format("rank {} meets rank {} in an exchange that is not for the same{}{}; {}try the same calls in the "
                    "same order on all ranks",
                    number_of(rank()), number_of(r), purpose().empty() ? "" : " as here: ", purpose(), places));
  }
}

void HostSegment::run_exchange(const Part& mine, std::span<std::byte> all) {
  const auto bytes = mine.bytes();
  size_t first = 0;
  do {
    const size_t count = std::min(kMailbox, bytes.size() - first);
    exchange_chunk(bytes.subspan(first, count), all.subspan(std::min(first, all.size())), bytes.size());
    first += count;
  } while (first < bytes.size());
}

SharedMemory HostSegment::receive_segment(int peer) {
  const int socket = sockets_[static_cast<size_t>(peer)].get();
  const auto arrived = [socket] {
    pollfd polled = {socket, POLLIN, 0};
    return poll(&polled, 1, 0) == 1;
  };
  wait_for(peer, arrived, "a shared segment");
  try {
    int64_t bytes = 0;
    UniqueFd fd = receive_fd(socket, bytes);
    return SharedMemory::adopt(std::move(fd), bytes);
  } catch (const FaultError&) {
    check_peers(std::nullopt, "a shared segment", Heed::aborts);  // why the peer has gone, where it said so
    throw;
  }
}

SharedMemory HostSegment::share(int64_t bytes, int creator) {
  // Descriptors travel over rank 0, to whom every rank has a socket.
  SharedMemory memory;
  if (rank() == creator) memory = SharedMemory::create(bytes);
  if (rank() == 0) {
    if (creator != 0) memory = receive_segment(creator);
    for (int r = 1; r < size(); ++r)
      if (r != creator) send_fd(sockets_[static_cast<size_t>(r)].get(), memory.fd(), memory.bytes());
    notify();
  } else if (rank() == creator) {
    send_fd(sockets_[0].get(), memory.fd(), memory.bytes());
    notify();
  } else {
    memory = receive_segment(0);
  }
  return memory;
}

// Every rank's bytes side by side, for all to read until the next barrier.
const std::byte* HostSegment::stage(const at::Tensor& mine) {
  forget_interrupted();
  const auto bytes = static_cast<int64_t>(mine.nbytes());
  if (staging_.bytes() < bytes * size()) {
    barrier(*this);
    staging_memory_ = share(bytes * size(), 0);
    staging_ = staging_memory_.map_writable(0, bytes * size());
  }
  copy_bytes(staging_.data() + bytes * rank(), mine.const_data_ptr(), bytes);
  bytes_sent_ += bytes;
  barrier(*this);
  return staging_.data();
}

Pending HostSegment::all_gather(const at::Tensor& shard, const at::Tensor& whole, std::string_view) {
  copy_bytes(whole.mutable_data_ptr(), stage(shard), static_cast<int64_t>(shard.nbytes()) * size());
  barrier(*this);
  return {};
}

Pending HostSegment::all_to_all(const at::Tensor& send, const at::Tensor& received, std::string_view) {
  const int64_t piece = static_cast<int64_t>(send.nbytes()) / size();
  const std::byte* all = stage(send);
  for (int r = 0; r < size(); ++r)
    copy_bytes(static_cast<std::byte*>(received.mutable_data_ptr()) + r * piece, all + (r * size() + rank()) * piece,
               piece);
  barrier(*this);
  return {};
}

}  // namespace sherd
