/* A shaped link between network namespaces: a TAP device in each, and from each to each a FIFO queue.
 *
 * A frame waits until the frames before it in its direction have left (length / rate, headers included), then travels
 * for the one-way delay. No frame is lost or reordered; one that finds its queue full is dropped and counted.
 *
 * usage: delay_link PARENT_PID DELAY_NS BYTES_PER_S INTERFACE NAMESPACE NAMESPACE [NAMESPACE]
 *
 * BYTES_PER_S 0 is a link without a rate. The device of the namespace with index i must have a hardware address that
 * ends in i: frames are switched by that byte, and nothing is broadcast. Prints "ready" once the devices exist. Ends at
 * SIGTERM, which the kernel also sends when the parent dies, however it dies: removes the namespaces' names and then
 * prints how many frames were dropped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <malloc.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_PARTIES = 3,
    MAX_FRAME_BYTES = 65600,   /* the most that TCP hands over at once, with headers and prefix */
    QUEUE_FRAMES = 1 << 16,    /* 590 MB of frames of one segment: 18 times the largest TCP buffer below */
    SIZES = 18,                /* binary digits of the largest frame's bytes, and one more */
    READS_AT_ONCE = 256,       /* frames taken from one device before those that are due are delivered */
    PREFIX_BYTES = sizeof(struct virtio_net_hdr), /* says what of the checksum is left to do: here nobody does it */
    LAST_ADDRESS_BYTE = 5,     /* of the destination, which an Ethernet frame begins with */
    NOTES = 1 << 12,           /* of frames that this program has not read yet */
    NOTE_BYTES = 128,          /* when the frame was sent, and its first bytes */
    LENGTH_AT = 2, PROTOCOL_AT = 9, CHECKSUM_AT = 10, SEQUENCE_AT = 4, OFFSET_AT = 12, FLAGS_AT = 13, /* where in a header */
    FIN = 0x01, PSH = 0x08, CWR = 0x80,
    HEADER_BYTES = 54,         /* of Ethernet, IPv4 and TCP, which no two frames have in common */
};

static const uint64_t NS_PER_S = 1000000000;
/* From here on, 64 kB pass in half a millisecond or less. TCP then hands over several segments in one piece, which
 * arrives as one, when its last bit does. Segment by segment, passing them on takes longer than a fast link does. */
static const double PIECES_BYTES_PER_S = 125e6;
static const uint64_t NEAR_NS = 6000; /* a frame due so soon is not worth doing anything else before */
static const uint64_t LEAST_LOOK_NS = 10000; /* frames are looked for no oftener, or whenever there are any */
static const uint64_t MAX_LATE_NS = 100000; /* more is another program's doing, and no reason to stay awake */

struct frame {
    uint64_t due_ns;
    size_t start, bytes;                 /* where it begins in `data`, and how long it is, prefix included */
    unsigned char data[MAX_FRAME_BYTES]; /* the memory holds no more than was read */
};

/* One direction between two parties. Indices only grow; their place in the ring is the remainder. */
struct queue {
    struct frame *ring[QUEUE_FRAMES];
    uint64_t first, end;
    uint64_t busy_until_ns; /* when the last bit of the last frame has left the sender */
};

/* What the kernel notes of each frame that a device is given, at that moment: this program may run much later. */
struct notes {
    unsigned char *ring;
    unsigned next; /* only grows; its place in the ring is the remainder */
};

struct link {
    int parties;
    int devices[MAX_PARTIES];
    unsigned char *notes[MAX_PARTIES]; /* a ring for each device */
    int ending; /* an event that threads wait for: the link ends */
    uint64_t delay_ns;
    double bytes_per_s;
};

/* What one party sends, which a thread of its own passes on: what the others send at the same time is not held up. */
struct sender {
    const struct link *link;
    int party;
    struct queue *queues[MAX_PARTIES]; /* by receiver */
    struct notes notes;
    struct frame *spare;               /* what the next frame is read into */
    uint64_t dropped;
    uint64_t late_ns;           /* how much later than asked a sleep ends: upper quartile */
    uint64_t handing_ns[SIZES]; /* how long it takes at least to hand over a frame, by the digits of its bytes */
};

/* Settings of each namespace. The first receive window holds ten jumbo frames; the largest buffer is 33 MB, 3 Gbit/s for
 * 80 ms. Reno is in every kernel and allowed in every namespace, and without loss it is slow start and nothing else. */
static const char *const SETTINGS[][2] = {
    {"/proc/sys/net/ipv4/tcp_rmem", "4096 1048576 33554432"},
    {"/proc/sys/net/ipv4/tcp_wmem", "4096 1048576 33554432"},
    {"/proc/sys/net/ipv4/tcp_congestion_control", "reno"},
    {"/proc/sys/net/ipv4/tcp_tso_win_divisor", "64"},   /* pieces leave as soon as their segments would */
    {"/proc/sys/net/ipv4/tcp_no_metrics_save", "1"},    /* a connection learns nothing from those before it */
    {"/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"},  /* its announcements would share the link */
};

static void fail(const char *what, const char *name) {
    fprintf(stderr, "%s %s: %s\n", what, name, strerror(errno));
    exit(1);
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static uint64_t now_ns(void) {
    return clock_ns(CLOCK_MONOTONIC);
}

static void path_of(char *path, size_t bytes, const char *name) {
    snprintf(path, bytes, "/run/netns/%s", name);
}

static void enter(const char *name) {
    char path[256];
    path_of(path, sizeof path, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || setns(file, CLONE_NEWNET) != 0) fail("cannot enter network namespace", name);
    close(file);
}

static void apply_settings(void) {
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++) {
        int file = open(SETTINGS[i][0], O_WRONLY | O_CLOEXEC);
        if (file < 0 && errno == ENOENT) continue; /* a kernel without IPv6, or too old for it */
        if (file < 0 || write(file, SETTINGS[i][1], strlen(SETTINGS[i][1])) < 0) fail("cannot set", SETTINGS[i][0]);
        close(file);
    }
}

/* A new TAP device in the current namespace; it vanishes with this process. */
static int new_device(const char *name, int in_pieces) {
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (device < 0) fail("cannot open", "/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(device, TUNSETIFF, &request) != 0) fail("cannot create TAP device", name);
    unsigned long left_out = TUN_F_CSUM | (in_pieces ? TUN_F_TSO4 : 0);
    if (ioctl(device, TUNSETOFFLOAD, left_out) != 0) fail("cannot leave out checksums on", name);
    return device;
}

/* A ring in which the kernel notes what leaves through `interface`, with the time (packet(7), PACKET_RX_RING). */
static unsigned char *new_notes(const char *interface) {
    int file = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (file < 0) fail("cannot open packet socket on", interface);
    struct sock_filter only_outgoing[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, (unsigned)(SKF_AD_OFF + SKF_AD_PKTTYPE)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, HEADER_BYTES),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog filter = {sizeof only_outgoing / sizeof *only_outgoing, only_outgoing};
    size_t bytes = (size_t)NOTES * NOTE_BYTES;
    struct tpacket_req request = {
        .tp_block_size = (unsigned)bytes, .tp_block_nr = 1, .tp_frame_size = NOTE_BYTES, .tp_frame_nr = NOTES};
    int version = TPACKET_V2;
    struct ifreq device = {0};
    snprintf(device.ifr_name, sizeof device.ifr_name, "%s", interface);
    if (ioctl(file, SIOCGIFINDEX, &device) != 0) fail("cannot find", interface);
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = device.ifr_ifindex};
    if (setsockopt(file, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) != 0 ||
        setsockopt(file, SOL_PACKET, PACKET_VERSION, &version, sizeof version) != 0 ||
        setsockopt(file, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) != 0)
        fail("cannot have times noted of", interface);
    unsigned char *ring = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (ring == MAP_FAILED || bind(file, (struct sockaddr *)&address, sizeof address) != 0)
        fail("cannot have times noted of", interface);
    return ring;
}

static struct tpacket2_hdr *note_at(const struct notes *notes, unsigned number) {
    return (struct tpacket2_hdr *)(notes->ring + (size_t)(number % NOTES) * NOTE_BYTES);
}

static int is_of(const struct tpacket2_hdr *note, const struct frame *frame) {
    const unsigned char *noted = (const unsigned char *)note + note->tp_mac;
    return note->tp_len == frame->bytes - PREFIX_BYTES &&
           memcmp(noted, frame->data + PREFIX_BYTES, note->tp_snaplen) == 0;
}

/* When the frame was given to its device. Notes come in the order of frames; those of frames that never came are passed
 * over. A frame without a note, because the ring was full, was given just now. */
static uint64_t given_ns(struct notes *notes, const struct frame *frame) {
    for (unsigned number = notes->next; number - notes->next < NOTES; number++) {
        const struct tpacket2_hdr *note = note_at(notes, number);
        if (!(__atomic_load_n(&note->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER)) break;
        if (!is_of(note, frame)) continue;
        uint64_t given = (uint64_t)note->tp_sec * NS_PER_S + note->tp_nsec;
        for (; notes->next != number + 1; notes->next++)
            __atomic_store_n(&note_at(notes, notes->next)->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        uint64_t clock = clock_ns(CLOCK_REALTIME), now = now_ns(); /* in this order nothing is noted too early */
        return clock > given && clock - given < NS_PER_S ? now - (clock - given) : now; /* unless the clock was set */
    }
    return now_ns();
}

static void remove_names(int count, char *const *names) {
    char path[256];
    for (int i = 0; i < count; i++) {
        path_of(path, sizeof path, names[i]);
        umount2(path, MNT_DETACH);
        unlink(path);
    }
}

/* Bytes that the link carries for a frame: a piece of several segments has the headers of each. */
static double wire_bytes(const struct frame *frame) {
    struct virtio_net_hdr prefix;
    memcpy(&prefix, frame->data + frame->start, sizeof prefix);
    size_t bytes = frame->bytes - PREFIX_BYTES;
    if (prefix.gso_type == VIRTIO_NET_HDR_GSO_NONE || prefix.gso_size == 0) return (double)bytes;
    size_t segments = (bytes - prefix.hdr_len + prefix.gso_size - 1) / prefix.gso_size;
    return (double)(bytes + (segments - 1) * prefix.hdr_len);
}

static void write_16(unsigned char *at, unsigned value) {
    at[0] = (unsigned char)(value >> 8);
    at[1] = (unsigned char)value;
}

/* Gives an IPv4 packet its length, header included, and the checksum of its header. */
static void set_length(unsigned char *ip, size_t bytes) {
    write_16(ip + LENGTH_AT, (unsigned)bytes);
    write_16(ip + CHECKSUM_AT, 0);
    uint32_t sum = 0;
    for (int i = 0; i < (ip[0] & 15) * 4; i += 2) sum += (uint32_t)ip[i] << 8 | ip[i + 1];
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    write_16(ip + CHECKSUM_AT, ~sum);
}

/* Bytes before the payload of TCP over IPv4, prefix included; all of another frame, whose payload nobody waits for. */
static size_t headers_of(const struct frame *frame) {
    const unsigned char *ip = frame->data + frame->start + PREFIX_BYTES + ETH_HLEN, *tcp = ip + (ip[0] & 15) * 4;
    int is_ipv4 = frame->bytes >= PREFIX_BYTES + HEADER_BYTES && ip[-2] == 8 && ip[-1] == 0;
    if (!is_ipv4 || ip[PROTOCOL_AT] != IPPROTO_TCP) return frame->bytes;
    return (size_t)(tcp - frame->data) - frame->start + (tcp[OFFSET_AT] >> 4) * 4u;
}

/* Takes the first two segments from a piece of more than three, as a frame of their own; NULL where there are no more.
 * A receiver acknowledges two segments. Of the first piece on an idle link it would do so when all of the piece has come,
 * and the sender's window would open too late. */
static struct frame *split_off(struct frame *frame) {
    struct virtio_net_hdr prefix;
    memcpy(&prefix, frame->data, sizeof prefix);
    if ((prefix.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) != VIRTIO_NET_HDR_GSO_TCPV4) return NULL;
    const size_t ip = PREFIX_BYTES + ETH_HLEN, tcp = ip + (frame->data[ip] & 15) * 4u;
    const size_t headers = headers_of(frame), first = 2u * prefix.gso_size;
    if (frame->bytes <= headers + first + prefix.gso_size || first < headers) return NULL;
    struct frame *head = malloc(offsetof(struct frame, data) + headers + first);
    if (head == NULL) return NULL;
    memcpy(head->data, frame->data, headers + first);
    head->start = 0;
    head->bytes = headers + first;
    head->data[tcp + FLAGS_AT] &= (unsigned char)~(FIN | PSH);
    set_length(head->data + ip, head->bytes - ip);
    unsigned char *rest = frame->data + first;
    memcpy(rest, frame->data, headers);
    frame->start = first;
    frame->bytes -= first;
    uint32_t sequence;
    memcpy(&sequence, rest + tcp + SEQUENCE_AT, sizeof sequence);
    sequence = ntohl(sequence) + (uint32_t)first;
    write_16(rest + tcp + SEQUENCE_AT, sequence >> 16);
    write_16(rest + tcp + SEQUENCE_AT + 2, sequence);
    rest[tcp + FLAGS_AT] &= (unsigned char)~CWR;
    set_length(rest + ip, frame->bytes - ip);
    return head;
}

/* A frame leaves after those before it in its direction. */
static void append(const struct link *link, struct queue *queue, struct frame *frame, uint64_t came_ns) {
    uint64_t starts_ns = queue->busy_until_ns > came_ns ? queue->busy_until_ns : came_ns;
    uint64_t sending_ns = link->bytes_per_s > 0 ? (uint64_t)(wire_bytes(frame) / link->bytes_per_s * 1e9) : 0;
    queue->busy_until_ns = starts_ns + sending_ns;
    frame->due_ns = queue->busy_until_ns + link->delay_ns;
    size_t needed = offsetof(struct frame, data) + frame->start + frame->bytes;
    struct frame *kept = realloc(frame, needed); /* in place: many small frames must not take the room of large ones */
    queue->ring[queue->end++ % QUEUE_FRAMES] = kept != NULL ? kept : frame;
}

/* Takes the spare frame, unless nobody is to have it. */
static void enqueue(struct sender *sender) {
    const struct link *link = sender->link;
    struct frame *frame = sender->spare;
    int to = frame->data[PREFIX_BYTES + LAST_ADDRESS_BYTE], multicast = frame->data[PREFIX_BYTES] & 1;
    if (multicast || to >= link->parties || to == sender->party) return;
    struct queue *queue = sender->queues[to];
    if (queue->end - queue->first >= QUEUE_FRAMES - 1) {
        sender->dropped++;
        return;
    }
    uint64_t came_ns = given_ns(&sender->notes, frame);
    struct frame *head = link->bytes_per_s == 0 || queue->busy_until_ns > came_ns ? NULL : split_off(frame);
    if (head != NULL) append(link, queue, head, came_ns);
    append(link, queue, frame, came_ns);
    sender->spare = NULL;
}

static void take_frames(struct sender *sender) {
    int device = sender->link->devices[sender->party];
    for (int i = 0; i < READS_AT_ONCE; i++) {
        if (sender->spare == NULL) sender->spare = malloc(sizeof *sender->spare);
        if (sender->spare == NULL) fail("cannot", "allocate");
        ssize_t bytes = read(device, sender->spare->data, sizeof sender->spare->data);
        if (bytes <= PREFIX_BYTES + LAST_ADDRESS_BYTE) return;
        sender->spare->start = 0;
        sender->spare->bytes = (size_t)bytes;
        enqueue(sender);
    }
}

/* What something takes at least, lately: less at once, more slowly. The first time may have been an exception. */
static void take_into_least(uint64_t *least_ns, uint64_t taken_ns) {
    if (*least_ns == 0) *least_ns = taken_ns / 4;
    else if (taken_ns < *least_ns) *least_ns = taken_ns;
    else *least_ns += *least_ns / 48 + 80;
}

/* The quartile that one of four is above, lately. */
static void take_into_quartile(uint64_t *quartile_ns, uint64_t taken_ns) {
    uint64_t step_ns = *quartile_ns / 48 + 80;
    if (taken_ns > *quartile_ns) *quartile_ns += 3 * step_ns;
    else *quartile_ns -= step_ns < *quartile_ns ? step_ns : *quartile_ns;
}

/* Hands over the frames that are due; returns when the next one is, UINT64_MAX for an empty queue. The receiver has a
 * frame once it is handed over, so that this begins earlier by as long as it takes. */
static uint64_t deliver(struct sender *sender, struct queue *queue, int device) {
    uint64_t now = now_ns();
    for (; queue->first < queue->end; queue->first++) {
        struct frame *frame = queue->ring[queue->first % QUEUE_FRAMES];
        uint64_t *handing_ns = &sender->handing_ns[64 - __builtin_clzll(frame->bytes)];
        uint64_t begin_ns = frame->due_ns > *handing_ns ? frame->due_ns - *handing_ns : 0;
        if (begin_ns > now + NEAR_NS) return begin_ns;
        while (now < begin_ns) now = now_ns();
        if (write(device, frame->data + frame->start, frame->bytes) != (ssize_t)frame->bytes) sender->dropped++;
        free(frame);
        uint64_t begun_ns = now;
        now = now_ns();
        take_into_least(handing_ns, now - begun_ns);
    }
    return UINT64_MAX;
}

/* Also says in `last` whether the next frame may be the last of a message, or the last but one: a shorter one follows, or
 * none. An acknowledgement, which nobody waits for, is not. */
static uint64_t deliver_all(struct sender *sender, int *last) {
    uint64_t next_ns = UINT64_MAX;
    for (int to = 0; to < sender->link->parties; to++) {
        if (to == sender->party) continue;
        struct queue *queue = sender->queues[to];
        uint64_t due_ns = deliver(sender, queue, sender->link->devices[to]);
        if (due_ns >= next_ns) continue;
        next_ns = due_ns;
        const struct frame *next = queue->ring[queue->first % QUEUE_FRAMES];
        const struct frame *behind = queue->end - queue->first > 1 ? queue->ring[(queue->first + 1) % QUEUE_FRAMES] : NULL;
        *last = next->bytes > headers_of(next) && (behind == NULL || behind->bytes < next->bytes);
    }
    return next_ns;
}

/* Waits for a frame from the party or for `next_ns`; returns whether the link ends. While a frame is on its way, others
 * are looked for only every half of the delay: when they were given is noted, and the processor is the party's. No look
 * comes so shortly before a frame is due that a late one would hold it up.
 * A processor at rest wakes late: before a frame that is `last`, the sleep is shorter by as much as the sleeps before it
 * were late, but for an eighth of the delay at most, and the rest of the time is spent awake. Within a message of many
 * frames it does not matter when each is handed over. */
static int wait_until(struct sender *sender, uint64_t next_ns, int last) {
    struct pollfd polled[] = {
        {.fd = sender->link->ending, .events = POLLIN},
        {.fd = sender->link->devices[sender->party], .events = POLLIN},
    };
    uint64_t now = now_ns(), left_ns = next_ns > now ? next_ns - now : 0, look_ns = sender->link->delay_ns / 2;
    uint64_t most_ns = sender->link->delay_ns / 8, early_ns = sender->late_ns < most_ns ? sender->late_ns : most_ns;
    int busy = next_ns != UINT64_MAX && look_ns >= LEAST_LOOK_NS;
    if (busy && left_ns > look_ns + most_ns) next_ns = now + look_ns, left_ns = look_ns, last = 0;
    if (!last) early_ns = 0;
    uint64_t sleep_ns = left_ns > early_ns ? left_ns - early_ns : 0;
    struct timespec sleep = {.tv_sec = (time_t)(sleep_ns / NS_PER_S), .tv_nsec = (long)(sleep_ns % NS_PER_S)};
    if (ppoll(polled, busy ? 1 : 2, next_ns == UINT64_MAX ? NULL : &sleep, NULL) != 0) return polled[0].revents != 0;
    uint64_t late_ns = now_ns() - now - sleep_ns;
    if (sleep_ns > 0) take_into_quartile(&sender->late_ns, late_ns < MAX_LATE_NS ? late_ns : MAX_LATE_NS);
    while (now_ns() < next_ns) continue;
    return 0;
}

/* The processors of the party whose frames these are, as `mpc/party.py` deals them out: a frame that has just been sent
 * is passed on sooner there than where another party computes. Parties without processors of their own share all. */
static void stand_by(const struct sender *sender) {
    cpu_set_t all, own;
    CPU_ZERO(&own);
    if (sched_getaffinity(0, sizeof all, &all) != 0) return;
    int each = CPU_COUNT(&all) / sender->link->parties, place = 0;
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &all) && place++ / (each > 0 ? each : 1) == sender->party) CPU_SET(cpu, &own);
    }
    if (each > 0) sched_setaffinity(0, sizeof own, &own);
}

static void *pass_on(void *argument) {
    struct sender *sender = argument;
    stand_by(sender);
    int ended = 0;
    while (!ended) {
        int last = 0;
        deliver_all(sender, &last); /* before those that have come since: they can wait for their delay */
        take_frames(sender);
        uint64_t next_ns = deliver_all(sender, &last);
        ended = wait_until(sender, next_ns, last);
    }
    return NULL;
}

static void open_link(struct link *link, const char *interface, char *const *names) {
    if ((link->ending = eventfd(0, EFD_CLOEXEC)) < 0) fail("cannot create", "event");
    for (int i = 0; i < link->parties; i++) {
        enter(names[i]);
        apply_settings();
        link->devices[i] = new_device(interface, link->bytes_per_s == 0 || link->bytes_per_s >= PIECES_BYTES_PER_S);
        link->notes[i] = new_notes(interface);
    }
}

static void start(pthread_t *thread, struct sender *sender, const struct link *link, int party) {
    *sender = (struct sender){.link = link, .party = party, .notes = {.ring = link->notes[party]}};
    for (int to = 0; to < link->parties; to++) {
        if (to != party && (sender->queues[to] = calloc(1, sizeof(struct queue))) == NULL) fail("cannot", "allocate");
    }
    if ((errno = pthread_create(thread, NULL, pass_on, sender)) != 0) fail("cannot start", "thread");
}

/* As on a real network, no computation of the parties holds up a frame; without the right to that, it may. Threads that
 * are started later do as this one does. */
static void be_prompt(void) {
    prctl(PR_SET_TIMERSLACK, 1000);
    sched_setscheduler(0, SCHED_RR, &(struct sched_param){.sched_priority = 1});
}

/* Blocks SIGTERM, in threads that are started later too, so that it waits to be asked for. */
static sigset_t end_with_parent(pid_t parent) {
    sigset_t terminate;
    sigemptyset(&terminate);
    sigaddset(&terminate, SIGTERM);
    sigprocmask(SIG_SETMASK, &terminate, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) raise(SIGTERM); /* it died before the line above */
    return terminate;
}

int main(int count, char **arguments) {
    if (count < 7 || count > 5 + MAX_PARTIES) {
        fputs("usage: delay_link PARENT_PID DELAY_NS BYTES_PER_S INTERFACE NAMESPACE NAMESPACE [NAMESPACE]\n", stderr);
        return 2;
    }
    struct link link = {
        .parties = count - 5,
        .delay_ns = strtoull(arguments[2], NULL, 10),
        .bytes_per_s = strtod(arguments[3], NULL),
    };
    char *const *names = arguments + 5;
    sigset_t terminate = end_with_parent((pid_t)strtol(arguments[1], NULL, 10));
    mallopt(M_TRIM_THRESHOLD, INT_MAX); /* memory of frames is used again, not given back and asked for */
    be_prompt();
    open_link(&link, arguments[4], names);
    pthread_t threads[MAX_PARTIES];
    struct sender senders[MAX_PARTIES];
    for (int i = 0; i < link.parties; i++) start(&threads[i], &senders[i], &link, i);
    puts("ready");
    fflush(stdout);
    int received;
    while (sigwait(&terminate, &received) != 0) continue;
    if (eventfd_write(link.ending, 1) != 0) fail("cannot end", "threads");
    uint64_t dropped = 0;
    for (int i = 0; i < link.parties; i++) {
        pthread_join(threads[i], NULL);
        dropped += senders[i].dropped;
    }
    remove_names(link.parties, names);
    printf("dropped %" PRIu64 "\n", dropped);
    return 0;
}
