/* Preloaded into a process that fetches a checkpoint: it is killed at its KILL_AT-th change of the disk below KILL_BELOW, a
 * writing after half of its bytes. With HOLD it is not killed but held there, until the file that HOLD names is gone; that it is held
 * tells the file HOLD.here. With NO_LOCKS, no lock is given. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(type, name) __typeof__(type) real = (type)dlsym(RTLD_NEXT, name)

static int below(const char *path) { return path != NULL && strncmp(path, getenv("KILL_BELOW"), strlen(getenv("KILL_BELOW"))) == 0; }

static int file_below(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  path[length < 0 ? 0 : length] = 0;
  return below(path);
}

/* Whether this is the change to die at. */
static int due(void) {
  static int changes;
  return __sync_add_and_fetch(&changes, 1) == atoi(getenv("KILL_AT"));
}

static void die(void) {
  const char *hold = getenv("HOLD");
  if (hold == NULL) { kill(getpid(), SIGKILL); pause(); }
  char here[4096];
  snprintf(here, sizeof here, "%s.here", hold);
  close(open(here, O_CREAT | O_WRONLY, 0600));
  while (access(hold, F_OK) == 0) usleep(20000);
}

int flock(int fd, int operation) {
  REAL(int (*)(int, int), "flock");
  if (getenv("NO_LOCKS") != NULL) { errno = ENOLCK; return -1; }
  return real(fd, operation);
}

ssize_t write(int fd, const void *bytes, size_t size) {
  REAL(ssize_t (*)(int, const void *, size_t), "write");
  if (file_below(fd) && due()) {
    ssize_t half = real(fd, bytes, size / 2);
    die();
    return half;
  }
  return real(fd, bytes, size);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset) {
  REAL(ssize_t (*)(int, const void *, size_t, off64_t), "pwrite64");
  if (file_below(fd) && due()) {
    ssize_t half = real(fd, bytes, size / 2, offset);
    die();
    return half;
  }
  return real(fd, bytes, size, offset);
}

int fsync(int fd) {
  REAL(int (*)(int), "fsync");
  if (file_below(fd) && due()) die();
  return real(fd);
}

int rename(const char *from, const char *to) {
  REAL(int (*)(const char *, const char *), "rename");
  if (below(from) && due()) die();
  return real(from, to);
}

int mkdir(const char *path, mode_t mode) {
  REAL(int (*)(const char *, mode_t), "mkdir");
  if (below(path) && due()) die();
  return real(path, mode);
}

int unlink(const char *path) {
  REAL(int (*)(const char *), "unlink");
  if (below(path) && due()) die();
  return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
  REAL(int (*)(int, const char *, int), "unlinkat");
  if (due()) die();
  return real(folder, path, flags);
}
