import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.ClosedChannelException;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * `hello PID` on the listening socket at descriptor 0, a thread for each connection; /slow takes two seconds. SIGTERM
 * drains: no more is accepted, what waits between two requests is closed, and the rest is answered.
 */
public class Main {
    /** Connections that have had an answer and sent no other request yet. */
    static final Set<SocketChannel> idle = ConcurrentHashMap.newKeySet();
    static volatile boolean stopping;

    public static void main(String[] args) throws Exception {
        if (!(System.inheritedChannel() instanceof ServerSocketChannel listener)) {
            System.err.println("descriptor 0 is no listening socket");
            System.exit(1);
            return;
        }
        ExecutorService pool = Executors.newCachedThreadPool();
        Thread accepting = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(listener, accepting, pool)));
        try {
            while (true) {
                SocketChannel client = listener.accept();
                pool.execute(() -> serve(client));
            }
        } catch (ClosedChannelException e) {
            // the hook has closed it
        }
    }

    static void stop(ServerSocketChannel listener, Thread accepting, ExecutorService pool) {
        stopping = true;
        try {
            listener.close();
            accepting.join(); // what it has accepted is the pool's
            for (SocketChannel client : idle) if (idle.remove(client)) client.close();
            pool.shutdown();
            pool.awaitTermination(10, TimeUnit.SECONDS);
        } catch (Exception e) {
            // the process ends anyway
        }
    }

    static void serve(SocketChannel client) {
        try (client) {
            BufferedReader input = new BufferedReader(new InputStreamReader(Channels.newInputStream(client)));
            boolean open = answer(client, input, input.readLine());
            while (open) {
                idle.add(client);
                String first = stopping ? null : input.readLine();
                open = idle.remove(client) && answer(client, input, first);
            }
        } catch (Exception e) {
            // the client's loss
        }
    }

    /** Answer the request that begins with this line; whether another may follow. */
    static boolean answer(SocketChannel client, BufferedReader input, String first) throws Exception {
        if (first == null) return false;
        boolean last = false;
        for (String line = first; line != null && !line.isEmpty(); line = input.readLine()) {
            last |= line.equalsIgnoreCase("connection: close");
        }
        if (first.contains(" /slow ")) Thread.sleep(2000);
        last |= stopping;
        String body = "hello " + ProcessHandle.current().pid() + "\n";
        client.write(ByteBuffer.wrap(("HTTP/1.1 200 OK\r\n" + (last ? "Connection: close\r\n" : "")
                + "Content-Length: " + body.length() + "\r\n\r\n" + body).getBytes()));
        return !last;
    }
}
