/*
 * The target of transparency.rs: writes into the file FILE all that the kernel tells this process about itself, one
 * fact a line. In C and static, so that no runtime changes anything before we look.
 *
 *     look FILE                   look
 *     look --oddly PROGRAM ...    exec PROGRAM with an environment that no shell would make
 *     look --wait                 say so and wait for a signal
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

extern char **environ;

static char facts[8 << 20];
static size_t length;

static void add(const void *bytes, size_t count)
{
	memcpy(facts + length, bytes, count);
	length += count;
}

static void fact(const char *format, ...)
{
	va_list values;
	va_start(values, format);
	length += vsnprintf(facts + length, sizeof facts - length, format, values);
	va_end(values);
	add("\n", 1);
}

/* A file of /proc: its lines, each behind `name`. */
static void file(const char *name)
{
	char path[64], *line, *rest;
	static char text[1 << 20];
	ssize_t count = 0, more = 0;
	snprintf(path, sizeof path, strcmp(name, "children") ? "/proc/self/%s" : "/proc/thread-self/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && (more = read(fd, text + count, sizeof text - 1 - count)) > 0)
		count += more;
	if (fd < 0 || more < 0) {
		fact("%s: errno %d", name, errno);
	} else {
		text[count] = 0;
		for (ssize_t at = 0; at < count; at++)
			text[at] = text[at] ? text[at] : '|';
		for (rest = text; (line = strsep(&rest, "\n")) && (*line || rest);)
			fact("%s: %s", name, line);
	}
	if (fd >= 0)
		close(fd);
}

static void link_of(const char *name)
{
	char path[64], target[4096];
	snprintf(path, sizeof path, "/proc/self/%s", name);
	ssize_t count = readlink(path, target, sizeof target - 1);
	target[count < 0 ? 0 : count] = 0;
	fact("%s -> %s", name, target);
}

/* Before anything is opened here, and without /proc as far as that goes. */
static void descriptors(void)
{
	for (int fd = 0; fd < 1024; fd++) {
		char name[32];
		struct stat status;
		int flags = fcntl(fd, F_GETFD);
		if (flags < 0)
			continue;
		fstat(fd, &status);
		fact("fd %d: flags %d mode %o status %o position %ld", fd, flags, status.st_mode,
		     fcntl(fd, F_GETFL), (long)lseek(fd, 0, SEEK_CUR));
		snprintf(name, sizeof name, "fd/%d", fd);
		link_of(name);
	}
}

static void signals(void)
{
	unsigned long set = 0;
	for (int number = 1; number <= 64; number++) {
		unsigned long action[8] = {0};
		syscall(SYS_rt_sigaction, number, 0, action, 8);
		fact("signal %d: handler %lx flags %lx", number, action[0], action[1]);
	}
	syscall(SYS_rt_sigprocmask, 0, 0, &set, 8);
	fact("blocked %lx", set);
	syscall(SYS_rt_sigpending, &set, 8);
	fact("pending %lx", set);
	stack_t stack;
	sigaltstack(0, &stack);
	fact("signal stack: flags %d", stack.ss_flags);
}

static void clocks(void)
{
	for (int which = 0; which < 3; which++) {
		struct itimerval timer;
		getitimer(which, &timer);
		fact("timer %d: %s, every %ld", which, timer.it_value.tv_sec || timer.it_value.tv_usec ? "set" : "not set",
		     (long)timer.it_interval.tv_sec);
	}
}

static void numbers(void)
{
	uid_t r, e, s;
	static const struct { const char *name; int option; } asked[] = {
		{"dumpable", PR_GET_DUMPABLE}, {"keepcaps", PR_GET_KEEPCAPS}, {"securebits", PR_GET_SECUREBITS},
		{"timerslack", PR_GET_TIMERSLACK}, {"no_new_privs", PR_GET_NO_NEW_PRIVS},
		{"thp_disable", PR_GET_THP_DISABLE}, {"mce_kill", PR_MCE_KILL_GET}, {"io_flusher", 58}, {"mdwe", 66},
	};
	for (size_t at = 0; at < sizeof asked / sizeof *asked; at++)
		fact("%s %d", asked[at].name, prctl(asked[at].option, 0, 0, 0, 0));
	int value = 0;
	pid_t self = getpid();
	prctl(PR_GET_PDEATHSIG, &value);
	fact("parent death signal %d", value);
	prctl(PR_GET_CHILD_SUBREAPER, &value);
	fact("subreaper %d", value);
	getresuid(&r, &e, &s);
	fact("users %d %d %d", r, e, s);
	getresgid(&r, &e, &s);
	fact("groups %d %d %d", r, e, s);
	fact("personality %x", personality(0xffffffff));
	fact("scheduling %d nice %d io %ld", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0),
	     syscall(SYS_ioprio_get, 1, 0));
	mode_t mask = umask(0);
	umask(mask);
	fact("umask %o", mask);
	fact("process group %s", getpgrp() == self ? "its own" : "its parent's");
	fact("session %s", getsid(0) == self ? "its own" : "its parent's");
	int terminal = open("/dev/tty", O_RDWR | O_CLOEXEC);
	fact("terminal %s", terminal < 0 ? "none" : tcgetpgrp(terminal) == getpgrp() ? "foreground" : "background");
	if (terminal >= 0)
		close(terminal);
	for (int which = 0; which < RLIM_NLIMITS; which++) {
		struct rlimit limit;
		getrlimit(which, &limit);
		fact("limit %d: %lx %lx", which, (long)limit.rlim_cur, (long)limit.rlim_max);
	}
	struct rusage children;
	getrusage(RUSAGE_CHILDREN, &children);
	fact("children had %ld pages", children.ru_minflt);
	fact("secure %lu, executed as %s", getauxval(AT_SECURE), (char *)getauxval(AT_EXECFN));
	char directory[4096];
	fact("directory %s", getcwd(directory, sizeof directory) ? directory : strerror(errno));
}

/* The numbers that two runs never share are left out; the pid is for the test alone. */
static void process(void)
{
	static const char *const names[] = {
		"status", "limits", "cmdline", "comm", "oom_score_adj", "timerslack_ns", "personality", "autogroup",
		"coredump_filter", "loginuid", "sessionid", "setgroups", "uid_map", "gid_map", "cgroup", "cpuset",
		"mountinfo", "attr/current", "projid_map", "timers", "wchan",
	};
	static const char *const links[] = {
		"exe", "cwd", "root", "ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid", "ns/pid_for_children",
		"ns/time", "ns/time_for_children", "ns/user", "ns/uts",
	};
	for (size_t at = 0; at < sizeof names / sizeof *names; at++)
		file(names[at]);
	for (size_t at = 0; at < sizeof links / sizeof *links; at++)
		link_of(links[at]);
	file("children");
}

/* The files that are mapped, each once for every mapping. */
static void mappings(void)
{
	char line[4096];
	FILE *maps = fopen("/proc/self/maps", "re");
	while (maps && fgets(line, sizeof line, maps)) {
		char *path = strchr(line, '/');
		if (path)
			fact("map %.*s", (int)strcspn(path, "\n"), path);
	}
	if (maps)
		fclose(maps);
}

static void environment(void)
{
	for (char **entry = environ; *entry; entry++) {
		add("environ ", 8);
		add(*entry, strlen(*entry));
		add("\n", 1);
	}
}

static int write_facts(const char *path)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	for (size_t done = 0; done < length;) {
		ssize_t more = write(fd, facts + done, length - done);
		if (more < 0)
			return 3;
		done += more;
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "--oddly")) {
		char *odd[] = {"A=1", "B=", "A=2", "no equals sign", "", "=nameless", "A=1", "\xff\xfe=\x80\n\x01", "Z=last", 0};
		execve(argv[2], argv + 2, odd);
		return 2;
	}
	if (argc > 1 && !strcmp(argv[1], "--wait")) {
		write(1, "waiting\n", 8);
		for (;;)
			pause();
	}
	fact("pid %d", getpid());
	descriptors();
	signals();
	clocks();
	numbers();
	process();
	mappings();
	environment();
	return write_facts(argv[1]);
}
